"""MemoryAgentBench (arXiv 2507.05257): many questions about each of 146 long texts, with the authors' scores."""
