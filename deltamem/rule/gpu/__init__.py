"""The delta rule on a CUDA device, in Triton: chunk-parallel for sequences, a single launch for a decode step."""
