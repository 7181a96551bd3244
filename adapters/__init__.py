"""Trained adapters, one folder each, exactly as they are pushed to the Hub."""
