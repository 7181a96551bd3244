"""Refuses a request whose memory cannot be used before it reaches the engine.

vLLM lets its logits processors check requests on arrival, and answers with what they raise. These change no logits. There are
two, because the interface depends on vLLM's model runner.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor as FirstLogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from deltamem.vllm.request import check_sampling, memory_use


class _Check:
    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See `LogitsProcessor`.

        Raises:
            ValueError: the request is not accepted; see `memory_use` and `check_sampling`.
        """
        use = memory_use(sampling_params.extra_args)
        check_sampling(use, sampling_params.n, sampling_params.stop, sampling_params.prompt_logprobs)


class RequestCheck(_Check, LogitsProcessor):
    """For the second model runner."""

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """See `LogitsProcessor`."""
        return False

    def apply(self, logits: Any, ctx: Any) -> Any:
        """See `LogitsProcessor`."""
        return logits


class FirstRequestCheck(_Check, FirstLogitsProcessor):
    """For the first model runner."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        """See `LogitsProcessor`."""

    def apply(self, logits: Any) -> Any:
        """See `LogitsProcessor`."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """See `LogitsProcessor`."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """See `LogitsProcessor`."""
