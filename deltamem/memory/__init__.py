"""A memory as a value that can be kept, stacked, saved and passed on. This package knows nothing about models."""
