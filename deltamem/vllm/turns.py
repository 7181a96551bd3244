"""Turns: the memories of the requests that an engine knows, from their arrival to their end.

Shapes: L layers with a memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState
from deltamem.store import Key
from deltamem.vllm.adapter import Adapter
from deltamem.vllm.batch import SlotUse, Use
from deltamem.vllm.keeper import LEASE, Keeper, Kept
from deltamem.vllm.request import MemoryUse, check_sampling, memory_use

# Seconds: how often a claim is renewed, and how often another's is looked at.
RENEWED, ASKED = LEASE / 4, 0.1
# A memory's contents for all layers: its parts by name, float32 [L, ...].
States = Mapping[str, Tensor]


@dataclass
class Turn:
    """A request and its memory.

    Args:
        request: vLLM's request.
        use: the memory that it names, and how that is written; None if it names none.

    Attributes:
        kept: the memory before the turn; None until it is loaded.
        writing: whether the answer is complete, or none is wanted, and what is left is to write.
        error: why the turn failed, if it did.
        ended: what was held back of the answer's end until everything is written: vLLM's status, None without an answer; the
            last tokens; and their log-probabilities.
    """

    request: Any
    use: MemoryUse | None
    kept: Kept | None = None
    writing: bool = False
    error: str | None = None
    ended: tuple[Any, list[int], Any] = (None, [], None)
    since: float = field(default_factory=time.monotonic)
    asked: float = 0.0

    @property
    def writes(self) -> bool:
        """Whether the turn changes its memory."""
        return self.use is not None and bool(self.use.write)

    @property
    def slot_use(self) -> SlotUse:
        """What the tokens do now; those that only read an empty memory need not read."""
        if self.use is None:
            return SlotUse(Use.NONE)
        if self.writing or self.use.write == "during":
            return SlotUse(Use.WRITE, self.use.known)
        return SlotUse(Use.NONE if self.kept is None or self.kept.state is None else Use.READ)


class Turns:
    """Loads the memories of requests, and keeps what they wrote.

    Two turns that write one memory run one after another; a turn that only reads waits for none.

    Args:
        adapter: the adapter.
        keeper: keeps the memories.
        patience: how many seconds a turn waits for a memory.
    """

    def __init__(self, adapter: Adapter, keeper: Keeper, patience: float) -> None:
        self._adapter, self._keeper, self._patience = adapter, keeper, patience
        self._turns: dict[str, Turn] = {}
        self._held: dict[Key, str] = {}  # the memories being written, with the ids of the requests that write them
        self._renewed = time.monotonic()
        self.refused: set[str] = set()  # the ids of requests that must be ended with an error

    def __getitem__(self, request_id: str) -> Turn:
        return self._turns[request_id]

    def get(self, request_id: str) -> Turn | None:
        """The turn of a request; None once it has ended."""
        return self._turns.get(request_id)

    def add(self, request: Any, room: int) -> None:
        """Note a new request; one that is not accepted is refused.

        Args:
            request: vLLM's request.
            room: how many tokens the request and its answer may have. A turn that writes needs one place more, because the last
                token is passed through the model to be written.
        """
        turn = self._turns[request.request_id] = Turn(request, None)
        sampling = request.sampling_params
        try:
            use = memory_use(getattr(sampling, "extra_args", None))
            if use is not None:
                check_sampling(use, sampling.n, sampling.stop, sampling.prompt_logprobs)
            turn.use = use
            if use is not None and use.known > request.num_prompt_tokens:
                prompt = f"a prompt of {request.num_prompt_tokens} tokens"
                raise ValueError(f"'known': {use.known} is not accepted for {prompt}; give at most these")
            turn.writing = use is not None and use.write == "prompt"
            longest = room - 1 if turn.writing else room - 2
            if turn.writes and (request.resumable or request.num_prompt_tokens > longest):
                raise ValueError(
                    f"a prompt of {request.num_prompt_tokens} tokens is not accepted with a memory that is written; give one "
                    f"that is complete and has at most {longest}, or 'write': false"
                )
            if turn.writes:
                request.max_tokens = min(request.max_tokens, longest + 1 - request.num_prompt_tokens)
        except ValueError as error:
            self._refuse(turn, str(error))

    def ready(self, request_id: str) -> bool:
        """Whether a request can start: its memory is loaded and, if it writes, not in use. If not, ask again later."""
        turn = self._turns[request_id]
        if turn.error is not None:
            return False
        if turn.use is None or turn.kept is not None:
            return True
        try:
            if turn.writes and not self._claimed(turn, turn.use.key):
                return False
            turn.kept = self._load(turn.use.key, turn.writes)
        except (ValueError, OSError) as error:
            self._refuse(turn, str(error))
            return False
        return True

    def start(self, request_id: str) -> States | None:
        """The states from which a request starts, or starts again after it was preempted; None if they are empty."""
        kept = self._turns[request_id].kept
        if kept is None or kept.state is None:
            return None
        return {part: tensor[:, 0] for part, tensor in kept.state.snapshot.parts.items()}

    def keep(self, request_id: str, states: States, tokens: int) -> None:
        """Store what a turn wrote; if that fails, the turn has failed.

        Args:
            request_id: the request.
            states: the states after its last token.
            tokens: how many tokens it has.
        """
        turn = self._turns.get(request_id)
        if turn is None or turn.use is None or turn.kept is None:
            return
        written = tokens - turn.use.known
        before = 0 if turn.kept.state is None else turn.kept.state.tokens[0]
        parts = {part: tensor[:, None] for part, tensor in states.items()}  # [L, 1, ...]
        try:
            snapshot = Snapshot(
                tuple(self._adapter.layers), parts, torch.tensor([before + written], dtype=torch.int64, device="cpu")
            )
            self._keeper.save(turn.kept, DeltaMemState(snapshot, self._adapter.fingerprint))
        except (ValueError, OSError) as error:
            turn.error = str(error)

    def end(self, request_id: str) -> None:
        """Forget a request that was answered, given up or refused; another may have its memory."""
        turn = self._turns.pop(request_id, None)
        self.refused.discard(request_id)
        if turn is not None and turn.use is not None and self._held.get(turn.use.key) == request_id:
            del self._held[turn.use.key]
            self._keeper.release(turn.use.key)

    def renew(self) -> None:
        """Renew the claims now and then. If that fails, others may take the memory; the store tells who came first."""
        if time.monotonic() - self._renewed < RENEWED:
            return
        self._renewed = time.monotonic()
        for key in self._held:
            with suppress(OSError):  # the database may be back the next time
                self._keeper.claim(key)

    def _claimed(self, turn: Turn, key: Key) -> bool:
        request_id, now = turn.request.request_id, time.monotonic()
        if now - turn.since > self._patience:
            raise ValueError(f"the memory {key} has been in use for {self._patience:.0f} seconds; try again later")
        if key in self._held:
            return self._held[key] == request_id
        if now - turn.asked < ASKED:
            return False
        turn.asked = now
        if self._keeper.claim(key):
            self._held[key] = request_id
        return key in self._held

    def _load(self, key: Key, writes: bool) -> Kept:
        kept = self._keeper.load(key, writes)
        if kept.state is None:
            return kept
        return Kept(key, self._adapter.accepted(kept.state, f"the memory {key}"), kept.record)

    def _refuse(self, turn: Turn, error: str) -> None:
        turn.error = error
        self.refused.add(turn.request.request_id)
