"""One adapter: its weights in a layer, its files, and the backbone for which it was made."""
