"""Evaluating a memory: recall and other tasks, next to controls."""
