"""Files that are written whole or not at all, and text that is fit for a terminal."""
