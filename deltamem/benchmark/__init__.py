"""Measures the cost of a memory: time and peak memory of an adapted model and its bare backbone (`deltamem bench`)."""
