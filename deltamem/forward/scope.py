"""The `with model.memory(state)` scope: which memory the passes inside it read and write.

A scope applies to the code inside its `with` statement. A context variable carries it to that code, and to the tasks and
threads that copy the context. Three rules make this exact. A scope that has ended is never found again, whatever still refers
to it. A scope in a generator does not apply to the consumer while the generator is suspended. And a generator that is resumed
in another context finds its scope by its frame.
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
from deltamem.forward.owner import PassOwner
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.soundness import find_not_finite
from deltamem.memory.state import DeltaMemState

_tickets = itertools.count()
# The scopes of all models that were opened in this context, innermost last. Some may have ended since, in another context.
_open_scopes: ContextVar[tuple[MemoryScope, ...]] = ContextVar("deltamem_scopes", default=())

_NOT_REACHED = (
    "no pass of the model ran in this memory scope, so nothing was read or written. A thread finds the scope only in a copy of "
    "the context (asyncio.to_thread, contextvars.copy_context().run), and a scope in a generator applies to the generator's "
    "code alone"
)


@dataclass(frozen=True)
class Generation:
    """A running call of `generate`, as its passes need it.

    Args:
        beams_per_row: continuations per row: beams, or returned sequences.
        prompt_tokens: length of the prompt.
        start: the scope's memory when the call began; without a KV cache, every step starts from it again.
    """

    beams_per_row: int
    prompt_tokens: int
    start: Snapshot


class MemoryScope:
    """An open `with model.memory(state)` scope.

    Args:
        owner: the tuner whose passes use the memory.
        adapter: the name of the adapter to which the memory belongs.
        state: the memory to read and write.
        write: whether tokens write.
        read: whether tokens read.
        segment_ids: `[batch, tokens]`, for adapters that write segments.
        keep_open: whether each row's last segment continues in a later pass.
        detach: cut the autograd graph at the scope's end, so that the state holds plain values.

    Attributes:
        ticket: a unique number of the scope, as a tensor, so that one compiled graph serves all scopes.
        status: "new", "open", "ended", or "broken off" if a surrounding scope ended first.
        reached: whether a pass has run in the scope.
        generation: the call of `generate` that runs in this scope, if any.
        write_gates: the mean write gate β of each pass in this scope that wrote and recorded gradients.
        token_writes: the writes of the most recent write-only pass, token by token, by attention module.
    """

    def __init__(
        self,
        owner: PassOwner,
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
        self._guard: weakref.ref[ScopeGuard] | None = None
        self._home: FrameType | None = None
        self._task: Any = None
        self._in_use = threading.RLock()

    @classmethod
    def find(cls, owner: PassOwner) -> MemoryScope | None:
        """The model's innermost open scope that applies to the caller.

        While torch.compile traces, the caller is unknown: the graph gets the model's newest scope of any thread, and an
        operator that fails at run time if this is not the caller's.

        Raises:
            RuntimeError: the scope around the caller was broken off.
        """
        if not owner.open_scopes:
            return None
        if torch.compiler.is_compiling():
            return owner.open_scopes[-1]
        entered = _open_scopes.get()
        scope = next((scope for scope in reversed([*owner.open_scopes]) if scope._concerns_caller(entered)), None)
        if scope is not None:
            scope.check_whole()
        return scope

    @property
    def is_open(self) -> bool:
        """Whether the scope has begun and not ended yet."""
        return self.status == "open"

    def check_whole(self) -> None:
        """Refuse to go on in a scope that was broken off.

        Raises:
            RuntimeError: the scope was broken off.
        """
        if self.status == "broken off":
            raise RuntimeError(
                "this memory scope was broken off, because a scope around it ended first; its memory is as it was before. Use "
                "`with` statements, which end in reverse order"
            )

    def check_adapter(self) -> None:
        """Refuse to go on with an adapter other than the one for which the scope was opened.

        Raises:
            RuntimeError: another adapter is active now.
        """
        active = self.owner.active_adapters
        if active[:1] != [self.adapter]:
            raise RuntimeError(
                f"this memory was opened for the adapter {self.adapter!r}, but {active} is active now, and would misread its "
                "numbers. Do not switch adapters while a memory is open"
            )

    def claim(self) -> None:
        """Keep other threads' passes out of this scope until `release`.

        Raises:
            RuntimeError: another thread's pass or generation is running in it.
        """
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "another thread is running a pass or a generation in this memory scope, and each would lose what the other "
                "writes. Run them one after the other, or open a scope with a clone() in each thread"
            )

    def release(self) -> None:
        """Let other threads in again; call it once per `claim`."""
        self._in_use.release()

    def begin(self, guard: ScopeGuard, home: FrameType | None) -> None:
        """Open the scope.

        Args:
            guard: the guard that ends the scope; if it is dropped before that, by an interrupt, the scope ends with it.
            home: the frame of the `with` statement.

        Raises:
            RuntimeError: another thread or task is writing to this memory.
        """
        entered = _open_scopes.get()
        writers = [other for other in self.owner.open_scopes if other.is_open and other.write and other.state is self.state]
        if self.write and not all(other._concerns_caller(entered) for other in writers):
            raise RuntimeError(
                "another thread or task is writing to this memory, or a suspended generator; with two writers, each would lose "
                "what the other writes. Let one finish first, or give the other a clone()"
            )
        self._home, self._task = home, running_task() if home is not None and is_async_generator(home) else None
        self._before = self.state.snapshot, self.state.fingerprint
        self._guard = weakref.ref(guard, lambda _: self._drop())
        self.owner.open_scopes.append(self)
        self.status = "open"
        _open_scopes.set((*(scope for scope in entered if scope.status != "ended"), self))

    def end(self) -> None:
        """Close the scope; no pass finds it any more, whatever still refers to it."""
        self.status = "ended"
        with suppress(ValueError):  # it may end before it was added to the list
            self.owner.open_scopes.remove(self)
        self._guard = self._home = self._task = None
        _open_scopes.set(tuple(scope for scope in _open_scopes.get() if scope is not self))

    def restore(self) -> None:
        """Undo all writes of this scope."""
        self.state.snapshot, self.state.fingerprint = self._before

    def break_off_inner(self) -> bool:
        """Break off the scopes that were opened inside this one and are still open: passes may have used the wrong memory."""
        entered = _open_scopes.get()
        later = entered[entered.index(self) + 1 :] if self in entered else ()
        inner = [scope for scope in later if scope.owner is self.owner and scope.is_open and not scope._is_suspended()]
        for scope in inner:
            scope.restore()
            scope.status = "broken off"
        return bool(inner)

    def commit(self) -> None:
        """Check what was written, record which adapter wrote it, and make it a plain value.

        Raises:
            FloatingPointError: the memory is no longer finite.
            RuntimeError: the active adapter is not the one for which the scope was opened.
        """
        if self.state.snapshot is self._before[0]:
            return
        bad = find_not_finite(self.state.snapshot)
        if bad is not None:
            raise FloatingPointError(
                f"the memory of {bad} became NaN or infinite; it was left as it was before this scope. Look for NaN or "
                "infinite values in the input or in the adapter's weights"
            )
        self.check_adapter()
        # In training, the weights will have changed by the time the memory is used.
        self.state.fingerprint = None if self.owner.model.training else self.owner.fingerprint()
        if self.detach:
            self.state.snapshot = self.state.snapshot.map(_plain)

    def _drop(self) -> None:
        """End as after an error, when no `with` statement can do it."""
        if self.is_open:
            self.restore()
        self.end()

    def _concerns_caller(self, entered: tuple[MemoryScope, ...]) -> bool:
        """Whether this open scope applies to the caller.

        Args:
            entered: the scopes of the caller's context.
        """
        if self in entered:
            return not self._is_suspended()
        return self._home is not None and is_generator(self._home) and is_running_here(self._home)

    def _is_suspended(self) -> bool:
        """Whether the scope is in a generator suspended at a `yield`: the running code is then its consumer's."""
        home = self._home
        if home is None or home.f_back is not None:
            return False
        # While an asynchronous generator awaits, its frame is suspended too, but what it awaits runs in another thread or task.
        return is_generator(home) or (self._task is not None and self._task is running_task())


class ScopeGuard:
    """Opens a scope for a `with` statement, and ends it whatever happens.

    If the statement ends in an error, or the memory is no longer finite, the state is as it was before. This is a class and not
    a `contextmanager` generator, in which an interrupt between two lines would leave the scope open. Here, an interrupt before
    the statement's body or at its very end drops the guard, and the scope ends with it.
    """

    def __init__(self, scope: MemoryScope) -> None:
        self._scope = scope

    def __enter__(self) -> MemoryScope:
        if self._scope.status != "new":
            raise RuntimeError("this memory scope has begun already; call model.memory(state) for each `with` statement")
        try:
            self._scope.begin(self, home_frame(sys._getframe(1)))
        except BaseException:
            self._scope.end()
            raise
        return self._scope

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        scope, kept = self._scope, False
        try:
            broke_off_inner = scope.break_off_inner()
            if error is None:
                scope.check_whole()
                if broke_off_inner:
                    raise RuntimeError(
                        "a memory scope ended before another one that was opened inside it: passes may have used the wrong "
                        "memory, so both memories are as they were before. Use `with` statements, which end in reverse order"
                    )
                scope.commit()
                kept = True
        finally:
            if not kept and scope.is_open:
                scope.restore()
            scope.end()
        if error is None and not scope.reached:
            warnings.warn(_NOT_REACHED, stacklevel=2)


def entered_scopes() -> tuple[MemoryScope, ...]:
    """The scopes of all models that were opened in the caller's context, innermost last."""
    return _open_scopes.get()


def _plain(tensor: Tensor) -> Tensor:
    """The tensor without its graph; usable in training even if it was created in inference mode."""
    if not tensor.is_inference():
        return tensor.detach()
    with torch.inference_mode(False):
        return tensor.clone()
