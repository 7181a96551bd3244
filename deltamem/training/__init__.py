"""Training a memory: episodes, the fact generator, the trainer and its command."""
