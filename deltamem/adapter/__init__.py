"""One adapter: its weights in a layer, its files, and the backbone that it was made for."""
