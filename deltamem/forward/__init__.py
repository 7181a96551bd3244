"""One forward pass: which memory it reads and writes, from the beginning to the end."""
