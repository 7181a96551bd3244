"""One forward pass of a model, from its beginning to its end: which memory it reads and writes."""
