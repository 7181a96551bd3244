"""TurnQueue: the turns that wait for an engine; tenants take turns."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import NamedTuple

from deltamem.serve.turn import CancelledTurnError, Turn


class BusyError(RuntimeError):
    """Too many turns wait already."""


class Ended(NamedTuple):
    """A turn that ended before it began, and why."""

    turn: Turn
    error: CancelledTurnError


class TurnQueue:
    """Turns that wait. Whoever uses it from several threads holds a lock.

    Args:
        most: the maximum number of turns.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: OrderedDict[str, deque[Turn]] = OrderedDict()  # by tenant, the one whose turn it is first

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, turn: Turn) -> None:
        """Add a turn.

        Raises:
            BusyError: too many wait.
        """
        if len(self) >= self._most:
            raise BusyError(f"{len(self)} turns wait already, and no more are accepted; try again later")
        self._of.setdefault(turn.tenant, deque()).append(turn)

    def next(self) -> Turn:
        """Take the turn that is next; there must be one."""
        tenant, turns = next(iter(self._of.items()))
        turn = turns.popleft()
        self._of.move_to_end(tenant)
        if not turns:
            del self._of[tenant]
        return turn

    def take_ended(self) -> list[Ended]:
        """Take the turns whose consumer left or whose time is over: they neither wait nor keep others out."""
        ended: list[Ended] = []
        for tenant, turns in [*self._of.items()]:
            reasons = {turn: error for turn in turns if (error := reason_to_end(turn)) is not None}
            ended += [Ended(*pair) for pair in reasons.items()]
            self._of[tenant] = deque(turn for turn in turns if turn not in reasons)
            if not self._of[tenant]:
                del self._of[tenant]
        return ended

    def take_all(self) -> list[Turn]:
        """Take all turns."""
        turns = [turn for turns in self._of.values() for turn in turns]
        self._of.clear()
        return turns


def reason_to_end(turn: Turn) -> CancelledTurnError | None:
    """Why a turn should end before it is complete; None if it should go on."""
    if turn.is_cancelled:
        return CancelledTurnError("the turn was cancelled; the memory is as it was before it")
    if turn.deadline is not None and time.monotonic() > turn.deadline:
        return CancelledTurnError("the turn took longer than allowed; the memory is as it was before it")
    return None
