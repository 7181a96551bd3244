"""The `with model.memory(state)` block: which memory the passes inside it read and write.

A block concerns the code inside its `with` statement. A context variable carries it to that code, and to the tasks and threads
that copy the context. Three things make that exact: a block that has ended is never found again, whatever still refers to it; a
block in a generator does not concern its consumer while the generator is suspended; and a generator that is resumed in another
context finds its block by its own frame.
"""

from __future__ import annotations

import itertools
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from deltamem.forward.frames import home_frame, is_async_generator, is_generator, is_running_here, running_task
from deltamem.forward.memory_pass import TokenWrites
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState, find_not_finite

_tickets = itertools.count()
# The blocks that were opened in this context, of any model, innermost last. Some may have ended since, in another context.
_open_scopes: ContextVar[tuple[MemoryScope, ...]] = ContextVar("deltamem_blocks", default=())

_NOT_REACHED = (
    "no pass of the model ran in this memory block, so nothing was read or written. A thread finds the block only in a copy of "
    "the context (asyncio.to_thread, contextvars.copy_context().run), and a block in a generator concerns the generator's code "
    "alone"
)


@dataclass(frozen=True)
class Generation:
    """What a running `generate` call means for its passes.

    Args:
        beams_per_row: continuations per row: beams, or returned sequences.
        prompt_tokens: length of the prompt.
        start: the block's memory when the call began; without a KV cache every step starts from there again.
    """

    beams_per_row: int
    prompt_tokens: int
    start: Snapshot


class MemoryScope:
    """An open `with model.memory(state)` block.

    Args:
        owner: the tuner whose passes it concerns.
        adapter: the name of the adapter that the memory belongs to.
        state: the memory that is read and written.
        write: whether tokens write.
        read: whether tokens read.
        segment_ids: `[batch, tokens]`, for adapters that write segments.
        keep_open: whether each row's last segment goes on in a later pass.
        detach: cut the autograd graph at the block's end, so that the state is a plain value.

    Attributes:
        ticket: a number for each block, as a tensor: a compiled graph is then the same for all blocks.
        status: "new", "open", "ended", or "broken off" by the end of a block around it.
        reached: whether a pass has found the block.
        generation: the call of `generate` that runs in this block, if any.
        write_gates: mean write gate β of the passes in this block that wrote and recorded gradients, one per pass.
        token_writes: what the newest pass wrote that did not read, token by token, by attention module.
    """

    def __init__(
        self,
        owner: Any,
        adapter: str,
        state: DeltaMemState,
        write: bool = True,
        read: bool = True,
        segment_ids: Tensor | None = None,
        keep_open: bool = False,
        detach: bool = True,
    ) -> None:
        self.owner = owner
        self.adapter = adapter
        self.state = state
        self.write = write
        self.read = read
        self.segment_ids = segment_ids
        self.keep_open = keep_open
        self.detach = detach
        self.ticket = torch.tensor(next(_tickets), dtype=torch.int64, device="cpu")
        self.status: Literal["new", "open", "ended", "broken off"] = "new"
        self.reached = False
        self.generation: Generation | None = None
        self.write_gates: list[Tensor] = []
        self.token_writes: Mapping[str, TokenWrites] = {}
        self._before = state.snapshot, state.fingerprint
        self._scope: weakref.ref[ScopeGuard] | None = None
        self._home: FrameType | None = None
        self._task: Any = None
        self._in_use = threading.RLock()

    @classmethod
    def find(cls, owner: Any) -> MemoryScope | None:
        """The innermost open block of a model that concerns the caller.

        While torch.compile traces it cannot ask who calls: the graph gets the model's newest block of any thread, and an
        operator that fails if that is not the caller's when the graph runs.

        Raises:
            RuntimeError: the block around the caller was broken off.
        """
        if not owner.open_scopes:
            return None
        if torch.compiler.is_compiling():
            return owner.open_scopes[-1]
        entered = _open_scopes.get()
        block = next((block for block in reversed([*owner.open_scopes]) if block._concerns_caller(entered)), None)
        if block is not None:
            block.check_whole()
        return block

    @property
    def is_open(self) -> bool:
        """Whether the block has begun and not ended yet."""
        return self.status == "open"

    def check_whole(self) -> None:
        """Refuse to go on in a block that was broken off.

        Raises:
            RuntimeError: it was.
        """
        if self.status == "broken off":
            raise RuntimeError(
                "this memory block was broken off, because a block around it ended first; its memory is as it was before. Use "
                "`with` statements, which end in the reverse order"
            )

    def check_adapter(self) -> None:
        """Refuse to go on with another adapter than the block was opened for.

        Raises:
            RuntimeError: another adapter is active now.
        """
        active = self.owner.active_adapters
        if active[:1] != [self.adapter]:
            raise RuntimeError(
                f"this memory was opened for the adapter {self.adapter!r}, but {active} is active now, and would take its "
                "numbers for its own. Do not switch adapters while a memory is open"
            )

    def claim(self) -> None:
        """Keep other threads' passes out of this block until `release`.

        Raises:
            RuntimeError: another thread's pass or generation is running in it.
        """
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "another thread is running a pass or a generation in this memory block, and each would lose what the other "
                "writes. Run them one after the other, or open a block with a clone() in each thread"
            )

    def release(self) -> None:
        """Let other threads in again, once for each `claim`."""
        self._in_use.release()

    def begin(self, scope: ScopeGuard, home: FrameType | None) -> None:
        """Open the block.

        Args:
            scope: what ends it; if it is dropped before that, an interrupt came in between, and the block ends with it.
            home: the frame of the `with` statement.

        Raises:
            RuntimeError: another thread or task is writing to this memory.
        """
        entered = _open_scopes.get()
        writers = [other for other in self.owner.open_scopes if other.is_open and other.write and other.state is self.state]
        if self.write and not all(other._concerns_caller(entered) for other in writers):
            raise RuntimeError(
                "another thread or task is writing to this memory, or a suspended generator; of two writers neither would know "
                "what it was told. Let one finish first, or give the other a clone()"
            )
        self._home, self._task = home, running_task() if home is not None and is_async_generator(home) else None
        self._before = self.state.snapshot, self.state.fingerprint
        self._scope = weakref.ref(scope, lambda _: self._drop())
        self.owner.open_scopes.append(self)
        self.status = "open"
        _open_scopes.set((*(block for block in entered if block.status != "ended"), self))

    def end(self) -> None:
        """Close the block; nothing finds it any more, whatever still refers to it."""
        self.status = "ended"
        with suppress(ValueError):  # it may have ended before it was listed
            self.owner.open_scopes.remove(self)
        self._scope = self._home = self._task = None
        _open_scopes.set(tuple(block for block in _open_scopes.get() if block is not self))

    def restore(self) -> None:
        """Take back what was written in this block."""
        self.state.snapshot, self.state.fingerprint = self._before

    def break_off_inner(self) -> bool:
        """Break off the blocks that were opened inside this one and are still open: passes may have gone to the wrong one."""
        entered = _open_scopes.get()
        later = entered[entered.index(self) + 1 :] if self in entered else ()
        inner = [block for block in later if block.owner is self.owner and block.is_open and not block._is_suspended()]
        for block in inner:
            block.restore()
            block.status = "broken off"
        return bool(inner)

    def commit(self) -> None:
        """Check what was written, say by which adapter, and make it a plain value.

        Raises:
            FloatingPointError: the memory is no longer finite.
            RuntimeError: another adapter is active than the block was opened for.
        """
        if self.state.snapshot is self._before[0]:
            return
        bad = find_not_finite(self.state.snapshot)
        if bad is not None:
            raise FloatingPointError(
                f"the memory of {bad} became NaN or infinite; it was left as it was before this block. Look for NaN or "
                "infinite values in the input or the adapter's weights"
            )
        self.check_adapter()
        # Weights that are being trained have changed by the time the memory is used.
        self.state.fingerprint = None if self.owner.model.training else self.owner.fingerprint()
        if self.detach:
            self.state.snapshot = self.state.snapshot.map(_plain)

    def _drop(self) -> None:
        """End as in an error, without a `with` statement that says so."""
        if self.is_open:
            self.restore()
        self.end()

    def _concerns_caller(self, entered: tuple[MemoryScope, ...]) -> bool:
        """Whether this open block is the caller's.

        Args:
            entered: the blocks of the caller's context.
        """
        if self in entered:
            return not self._is_suspended()
        return self._home is not None and is_generator(self._home) and is_running_here(self._home)

    def _is_suspended(self) -> bool:
        """Whether the block is in a generator that waits at a `yield`: what runs now is its consumer's."""
        home = self._home
        if home is None or home.f_back is not None:
            return False
        # What an asynchronous generator awaits runs while its frame is suspended, too, but in another thread or task.
        return is_generator(home) or (self._task is not None and self._task is running_task())


class ScopeGuard:
    """Opens a block for a `with` statement, and ends it whatever happens.

    If the statement ends in an error, or the memory is no longer finite, the state is as it was before. No generator with a
    decorator, because an interrupt between two of its lines would leave the block open: here, one that comes before the
    statement's body or at its very end drops the scope, and with it the block.
    """

    def __init__(self, block: MemoryScope) -> None:
        self._block = block

    def __enter__(self) -> MemoryScope:
        if self._block.status != "new":
            raise RuntimeError("this memory block has begun already; call model.memory(state) for each `with` statement")
        try:
            self._block.begin(self, home_frame(sys._getframe(1)))
        except BaseException:
            self._block.end()
            raise
        return self._block

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        block, kept = self._block, False
        try:
            broke_off_inner = block.break_off_inner()
            if error is None:
                block.check_whole()
                if broke_off_inner:
                    raise RuntimeError(
                        "a memory block ended before another one that was opened inside it: it is unknown whose passes went to "
                        "which, so both memories are as they were before. Use `with` statements, which end in the reverse order"
                    )
                block.commit()
                kept = True
        finally:
            if not kept and block.is_open:
                block.restore()
            block.end()
        if error is None and not block.reached:
            warnings.warn(_NOT_REACHED, stacklevel=2)


def entered_scopes() -> tuple[MemoryScope, ...]:
    """The blocks that were opened in the caller's context, of any model, innermost last."""
    return _open_scopes.get()


def _plain(tensor: Tensor) -> Tensor:
    """Without a graph, and usable in training even if it was made under inference mode."""
    if not tensor.is_inference():
        return tensor.detach()
    with torch.inference_mode(False):
        return tensor.clone()
