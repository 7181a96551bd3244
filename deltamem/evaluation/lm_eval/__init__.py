"""lm-evaluation-harness integration: a model class for adapters, and its tasks under our settings."""
