"""VllmEngine: runs the turns of `deltamem serve` in vLLM.

A turn is one or more requests: an answer, which only reads the memory, and prompts that are written. The server keeps the
memories, so each request is given its own copy, under a name of its own, and the written one is taken back.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from deltamem.adapter.files import backbone_of
from deltamem.chat.tokens import Message
from deltamem.memory.state import DeltaMemState
from deltamem.serve.answer_stream import AnswerStream
from deltamem.serve.engine import end_tokens
from deltamem.serve.turn import Event, Failed, Finished, Sampling, TokenChoice, Turn
from deltamem.serve.turn_queue import reason_to_end
from deltamem.serve.turn_runner import TurnRunner
from deltamem.serve.turn_tokens import TurnTokens
from deltamem.store import Key
from deltamem.vllm.adapter import Adapter
from deltamem.vllm.keeper import HANDED_OVER, IN_PROCESS
from deltamem.vllm.options import NAME, engine_options
from deltamem.vllm.request import LOCAL

# Tokens of the context that vLLM does not leave to a request that is written: one for what it must generate.
RESERVED = 1


class Asked(NamedTuple):
    """A request to vLLM.

    Args:
        prompt: its tokens.
        sampling: how an answer is chosen; None for a prompt that is written.
        memory: the memory that it reads or writes.
        known: how many of the prompt's first tokens are not written.
    """

    prompt: list[int]
    sampling: Sampling | None
    memory: DeltaMemState
    known: int = 0


class Got(NamedTuple):
    """What vLLM says of a request.

    Args:
        memory: the memory, after its prompt was written if it is.
        choices: the new tokens of an answer.
    """

    memory: DeltaMemState
    choices: Sequence[TokenChoice] = ()


# Yields a request, or None to hear more of the one under way; gets what vLLM says of it.
Steps = Generator[Asked | None, Got, Finished]


@dataclass
class _Running:
    """A turn that has begun, and its request under way."""

    turn: Turn
    steps: Steps
    key: Key = field(default_factory=lambda: Key(LOCAL, uuid.uuid4().hex))
    asked: Asked | None = None


class VllmEngine(TurnRunner):
    """Runs turns in vLLM, in this process.

    Args:
        adapter: the adapter, a folder or a name on the Hub; the shipped one if None.
        model: the backbone, likewise; the one that the adapter names if None.
        rows: see `TurnRunner`.
        waiting: see `TurnRunner`.
        options: further options of vLLM's `LLM`.

    Raises:
        ValueError, OSError: see `engine_options`.
    """

    def __init__(
        self, adapter: str | None = None, model: str | None = None, rows: int = 32, waiting: int = 256, **options: Any
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler must be in this process, with the memories
        from vllm import LLM

        given = engine_options(adapter, model, store=IN_PROCESS)
        super().__init__(AutoTokenizer.from_pretrained(given["model"]), rows, waiting)
        self._adapter = Adapter.read(given["additional_config"][NAME]["adapter"])
        self._llm = LLM(**given, **{"max_num_seqs": rows, **options}).llm_engine
        config = self._llm.model_config
        self.backbone = model or backbone_of(self._adapter.name)
        self._tokens = TurnTokens(self.tokenizer, self._adapter.config.write, config.max_model_len - RESERVED)
        self._ends = end_tokens(config.try_get_generation_config().get("eos_token_id"), self.tokenizer)
        self._begun: deque[_Running] = deque()  # turns without a request yet
        self._running: dict[str, _Running] = {}  # by the id of the request under way
        self._thread.start()

    def new_memory(self) -> DeltaMemState:
        """See `TurnRunner`."""
        return self._adapter.new_memory()

    def accepted(self, state: DeltaMemState) -> DeltaMemState:
        """See `TurnRunner`."""
        return self._adapter.accepted(state, "this memory")

    @property
    def running(self) -> int:
        """See `TurnRunner`."""
        return len(self._begun) + len(self._running)

    def close(self) -> None:
        """See `TurnRunner`."""
        super().close()
        self._llm.engine_core.shutdown()

    def _running_turns(self) -> list[Turn]:
        return [running.turn for running in (*self._begun, *self._running.values())]

    def _begin(self, turn: Turn) -> None:
        self._begun.append(_Running(turn, self._steps(turn)))  # its first step tokenises, which must not hold up `submit`

    def _round(self) -> None:
        while self._begun:
            self._advance(self._begun.popleft())
        for name, running in [*self._running.items()]:
            error = reason_to_end(running.turn)
            if error is not None:
                self._drop(name)
                running.turn.emit(Failed(error))
        for output in self._step() if self._running else ():
            if output.request_id in self._running:  # else it was given up
                self._hear(output.request_id, output.outputs[0], output.finished)

    def _step(self) -> Sequence[Any]:
        try:
            outputs: Sequence[Any] = self._llm.step()
        except Exception as error:  # after a lack of memory, say, nobody knows what vLLM's cache holds
            for name, running in [*self._running.items()]:
                self._drop(name)
                running.turn.emit(Failed(error))
            return ()
        return outputs

    def _hear(self, name: str, answer: Any, ended: bool) -> None:
        """Tell a turn what vLLM says of its request."""
        running = self._running[name]
        if answer.finish_reason == "error":
            self._drop(name, ended)
            running.turn.emit(Failed(ValueError(str(answer.stop_reason))))
            return
        sampling = None if running.asked is None else running.asked.sampling
        if sampling is not None or ended:
            choices = () if sampling is None else _choices(answer, sampling)
            self._advance(running, Got(HANDED_OVER.get(running.key), choices), name, ended)

    def _advance(self, running: _Running, got: Got | None = None, name: str | None = None, ended: bool = False) -> None:
        """Run a turn up to its next request, or its end; what fails is the turn's own."""
        try:
            found = running.steps.send(got)  # type: ignore[arg-type]  # None begins
            if found is None:
                return
            if name is not None:
                self._drop(name, ended)
                name = None
            self._send(running, found)
            return
        except StopIteration as stop:
            end: Event = stop.value
        except Exception as error:
            end = Failed(error)
        if name is not None:
            self._drop(name, ended)
        running.turn.emit(end)

    def _send(self, running: _Running, asked: Asked) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        memory = {"memory": running.key.memory, "write": "prompt", "known": asked.known}
        chosen: dict[str, Any] = {"max_tokens": 1}
        if asked.sampling is not None:
            memory = {"memory": running.key.memory, "write": False}
            options = ("max_tokens", "temperature", "top_p", "seed", "logprobs")
            chosen = {name: getattr(asked.sampling, name) for name in options}
        common = {"ignore_eos": True, "detokenize": False, "output_kind": RequestOutputKind.DELTA}
        name = uuid.uuid4().hex
        HANDED_OVER.put(running.key, asked.memory)
        self._running[name], running.asked = running, asked
        try:
            params = SamplingParams(**chosen, **common, stop_token_ids=[*self._ends], extra_args=memory)
            self._llm.add_request(name, {"prompt_token_ids": asked.prompt}, params)
        except Exception:
            self._drop(name, ended=True)
            raise

    def _drop(self, name: str, ended: bool = False) -> None:
        """Forget a request; give it up if it has not ended."""
        running = self._running.pop(name)
        if not ended:
            self._llm.abort_request([name])
        HANDED_OVER.drop(running.key)

    def _steps(self, turn: Turn) -> Steps:
        """The requests of a turn, as `TurnPasses` passes over it."""
        messages, known, memory = [*turn.messages], turn.known, turn.memory
        before, prompt, answer = memory.tokens[0], 0, None
        if turn.sampling is not None:
            if turn.write == "during":
                raise ValueError(
                    'writing "during" is not accepted by a server that runs vLLM: an answer cannot go on from the pass that '
                    'wrote its prompt; give "after" or false'
                )
            asked = self._tokens.prompt(messages, turn.sampling)
            prompt, answer = len(asked.tokens.ids), AnswerStream(self.tokenizer, asked.sampling, turn.emit)
            got = yield Asked(asked.tokens.ids.tolist(), asked.sampling, memory)
            while all(answer.add(choice, self._ends) for choice in got.choices):
                got = yield None
            messages.append({"role": "assistant", "content": answer.text})
        if turn.write:
            memory = yield from self._write(memory, messages, known)
        written = memory.tokens[0] - before
        if answer is None:
            return Finished("", "stop", memory, written, 0, 0)
        return Finished(answer.text, answer.reason, memory, written, prompt, answer.tokens)

    def _write(
        self, memory: DeltaMemState, messages: Sequence[Message], known: int
    ) -> Generator[Asked | None, Got, DeltaMemState]:
        """Write the messages that are not known."""
        tokens, new = self._tokens.written(messages, known)
        if new == len(tokens.ids):
            return memory
        return (yield Asked(tokens.ids.tolist(), None, memory, new)).memory


def _choices(answer: Any, sampling: Sampling) -> list[TokenChoice]:
    """The new tokens of a request's output."""
    if sampling.logprobs is None:
        return [*map(TokenChoice, answer.token_ids)]
    found = []
    for token, likeliest in zip(answer.token_ids, answer.logprobs, strict=True):
        ranked = sorted(((id, one.logprob) for id, one in likeliest.items()), key=lambda pair: -pair[1])
        found.append(TokenChoice(token, likeliest[token].logprob, tuple(ranked[: sampling.logprobs])))
    return found


def load_engine(model: str | None, adapter: str | None, dtype: str, rows: int, waiting: int) -> tuple[VllmEngine, str]:
    """Load vLLM with a model, for `deltamem serve`; returns it with the name of its backbone.

    Args:
        model, adapter, rows, waiting: see `VllmEngine`.
        dtype: the backbone's.

    Raises:
        ValueError, OSError: see `VllmEngine`.
    """
    engine = VllmEngine(adapter, model, rows, waiting, dtype=dtype)
    return engine, engine.backbone
