"""δ-mem inside vLLM: a memory for each request of an engine that batches, preempts and shards.

`deltamem_vllm` (beside `deltamem/`) is the plug-in that vLLM loads. Only `engine_options` is for users; vLLM loads the rest in
its processes, by the names that these options and `configure.py` give.
"""

from deltamem.vllm.options import engine_options

__all__ = ["engine_options"]
