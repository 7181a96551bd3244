"""Converts adapters of the authors' research code to PEFT adapters, and back."""

from deltamem.convert.weights import from_reference, to_reference

__all__ = ["from_reference", "to_reference"]
