"""Attention with four projections of the usual names."""

from family import Family

FAMILIES = {
    "llama": Family(),
    "qwen3": Family(),
    "phi": Family(),
}
