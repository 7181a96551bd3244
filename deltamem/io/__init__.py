"""Atomic file writes, and text made safe for a terminal."""
