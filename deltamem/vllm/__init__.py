"""δ-mem inside vLLM: a memory for each request of an engine that batches, preempts and shards.

`deltamem_vllm` (beside `deltamem/`) is the plug-in that vLLM loads. Only `engine_options` is for users; the rest is named in the
options that it returns, and loaded by vLLM in its processes.
"""

from deltamem.vllm.options import engine_options


__all__ = ["engine_options"]
