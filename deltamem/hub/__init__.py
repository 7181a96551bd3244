"""Hugging Face Hub: model cards, and uploads of adapters."""
