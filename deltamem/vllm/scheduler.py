"""MemoryScheduler: vLLM's scheduler, which also writes the memories before a request ends."""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from deltamem.vllm.connector import Ended
from deltamem.vllm.turns import Turn


class MemoryScheduler(Scheduler):
    """Runs on after an answer that is written is complete, and holds back its end until its memory is stored.

    For "after", the request starts again from its memory, as after a preemption, and now its tokens write. For "during", only
    its last token is left to pass through the model. For "prompt", the request ends when its prompt is written.
    """

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """See `Scheduler`."""
        turns = self.connector.turns
        transferred = model_runner_output.kv_connector_output
        ended = None if transferred is None else transferred.kv_connector_worker_meta
        if isinstance(ended, Ended):
            for name, states in ended.states.items():
                if (turn := turns.get(name)) is not None:
                    turns.keep(name, states, turn.request.num_tokens)
        errors = {name: turns[name].error for name in turns.refused if name in self.requests}
        self.grammar_compile_error_reqs |= {*errors}  # the ids that vLLM ends with an error
        self._begun: list[Turn] = []
        told = {name: turn for name in scheduler_output.num_scheduled_tokens if (turn := turns.get(name)) and turn.writing}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._hold_back_logprobs(model_runner_output)
        for of_client in outputs.values():
            for output in of_client.outputs:
                if output.request_id in told and output.finish_reason is not None:
                    output.new_logprobs = told[output.request_id].ended[2]
                if output.request_id in errors:
                    output.stop_reason = errors[output.request_id]
        return outputs

    def _update_request_with_output(
        self, request: Any, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """See `Scheduler`. A request whose answer is complete goes on if it is to be written."""
        turn = self.connector.turns[request.request_id]
        if turn.writing:
            status, held_back, _ = turn.ended
            request.status = status or RequestStatus.FINISHED_LENGTH_CAPPED
            if turn.error is not None:
                request.status, request.stop_reason = RequestStatus.FINISHED_ERROR, turn.error
            return held_back, True
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        if stopped and turn.writes:
            turn.ended = request.status, new_token_ids, None
            self._begin_writing(turn)
            return [], False
        return new_token_ids, stopped

    def _begin_writing(self, turn: Turn) -> None:
        request, turn.writing = turn.request, True
        self._begun.append(turn)
        request.status = RequestStatus.RUNNING
        request.structured_output_request = None  # nothing more is chosen
        if turn.use is not None and turn.use.write == "after":
            self.running.remove(request)
            self._preempt_request(request, time.monotonic())

    def _hold_back_logprobs(self, model_runner_output: Any) -> None:
        """Keep the log-probabilities of the last tokens of the answers that were completed in this step."""
        logprobs = model_runner_output.logprobs
        for turn in self._begun:
            status, tokens, _ = turn.ended
            if logprobs and turn.request.sampling_params.num_logprobs is not None:
                place = model_runner_output.req_id_to_index[turn.request.request_id]
                turn.ended = status, tokens, logprobs.slice_request(place, len(tokens))
