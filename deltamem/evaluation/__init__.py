"""Evaluating a memory: recall, next to controls."""
