"""The Hub: model cards, and adapters that are sent there."""
