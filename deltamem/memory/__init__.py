"""A memory as a value: to keep, stack, save and hand over. Nothing here knows a model."""
