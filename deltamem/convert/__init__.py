"""Adapters of the authors' research code, turned into PEFT adapters, and back."""

from deltamem.convert.weights import from_reference, to_reference

__all__ = ["from_reference", "to_reference"]
