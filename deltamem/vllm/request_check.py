"""RequestCheck: refuses a request whose memory cannot be used before it reaches the engine."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from deltamem.vllm.request import check_sampling, memory_use


class RequestCheck(LogitsProcessor):
    """Changes no logits: vLLM lets its logits processors check requests on arrival, and answers with what they raise."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """See `LogitsProcessor`.

        Raises:
            ValueError: the request is not accepted; see `memory_use` and `check_sampling`.
        """
        use = memory_use(sampling_params.extra_args)
        check_sampling(use, sampling_params.n, sampling_params.stop, sampling_params.prompt_logprobs)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """See `LogitsProcessor`."""
        return False

    def apply(self, logits: Any, ctx: Any) -> Any:
        """See `LogitsProcessor`."""
        return logits
