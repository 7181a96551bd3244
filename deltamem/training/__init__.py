"""Training a memory: episodes, their generator, the trainer and its command."""
