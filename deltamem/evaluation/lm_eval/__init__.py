"""lm-evaluation-harness as an engine: its model for adapters, and its tasks."""
