"""The delta rule on a CUDA device, in Triton: chunk-parallel for sequences, one launch for a decoding step."""
