"""Forgets messages, and moves a memory to another adapter, by writing what remains of its journal again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, replace

from deltamem.memory.state import DeltaMemState
from deltamem.serve.memories import ServedMemories, messages_of, written_entries
from deltamem.serve.seen import Seen
from deltamem.store import Contents, Key, Memory, NotFound, Snapshot, StoreError, Turn


@dataclass(frozen=True)
class Checkpoint:
    """The state before a turn."""

    turn: int
    state: bytes


@dataclass(frozen=True)
class Replayed:
    """The state after a replay, and the turns and snapshots on the way."""

    state: DeltaMemState
    turns: list[Turn]
    snapshots: list[Snapshot]


async def forget(memories: ServedMemories, key: Key, messages: Collection[str]) -> Memory:
    """Forget messages: afterwards, the memory is the one that never heard them.

    Args:
        memories: the server's memories.
        key: the memory.
        messages: the ids of entries of its journal.

    Raises:
        NotFound: the memory or one of the messages does not exist.
    """
    async with memories.claims.claimed(key):
        kept = await asyncio.to_thread(memories.store.contents, key)
        if not messages:
            return kept.memory
        known = {entry.id: entry for entry in kept.entries if entry.written}
        unknown = sorted({*messages} - {*known})
        if unknown:
            raise NotFound(_no_message(key, unknown[0]))
        places = [place for place, entry in written_entries(kept.memory, kept.entries) if entry.id in messages]
        first = min(known[id_].turn for id_ in messages)
        start = _checkpoint(kept, first)
        replayed = await _replay(memories, kept, memories.opened(start.state), start.turn, messages, places)
        return await _rewrite(memories, kept.memory, replayed, messages, places)


async def fork_before(memories: ServedMemories, key: Key, message: str, to: Key) -> Memory:
    """Copy a memory as it was when a message was said, before its turn was written.

    Raises:
        NotFound: the memory or the message does not exist.
        Exists: there is a memory of the other name.
    """
    async with memories.claims.claimed(*{key, to}):
        kept = await asyncio.to_thread(memories.store.contents, key)
        said = next((entry for entry in kept.entries if entry.id == message and entry.written), None)
        if said is None:
            raise NotFound(_no_message(key, message))
        earlier = [turn for turn in kept.turns if turn.number < said.turn]
        start = _checkpoint(kept, said.turn)
        before = replace(kept, turns=earlier)
        replayed = await _replay(memories, before, memories.opened(start.state), start.turn, (), ())
        places = [place for place, entry in written_entries(kept.memory, kept.entries) if entry.turn == said.turn]
        memory = replace(
            kept.memory,
            key=to,
            state=replayed.state.to_bytes(),
            tokens=replayed.state.tokens[0],
            turn=said.turn - 1,
            seen=kept.memory.seen[: places[0]],
        )
        entries = [entry for entry in kept.entries if entry.turn < said.turn]
        snapshots = [snapshot for snapshot in kept.snapshots if snapshot.turn < said.turn]
        return await asyncio.to_thread(memories.store.put, Contents(memory, entries, earlier, snapshots))


async def move(memories: ServedMemories, key: Key) -> Memory:
    """Write a memory's whole journal again with the server's adapter, whichever wrote it before.

    Raises:
        NotFound: the memory does not exist.
        StoreError: it keeps no journal, or has contents that are not in it.
    """
    async with memories.claims.claimed(key):
        kept = await asyncio.to_thread(memories.store.contents, key)
        first = kept.turns[0].before if kept.turns else None
        if first is None or DeltaMemState.from_bytes(first).tokens != [0]:
            raise StoreError(
                f"the journal of the memory {key} does not have everything that was written to it, so it cannot be written "
                "again; only a memory that was made with a journal, and empty, can"
            )
        replayed = await _replay(memories, kept, memories.engine.new_memory(), kept.turns[0].number, (), ())
        return await _rewrite(memories, kept.memory, replayed, (), ())


async def _replay(
    memories: ServedMemories,
    kept: Contents,
    state: DeltaMemState,
    first: int,
    removed: Collection[str],
    places: Collection[int],
) -> Replayed:
    """Write the turns from a number on again, without some messages."""
    entries = {entry.id: entry for entry in kept.entries if entry.id not in removed}
    turns: list[Turn] = []
    snapshots: list[Snapshot] = []
    checkpoint = False  # a turn that is left out hands its checkpoint to the next one
    for turn in kept.turns:
        if turn.number < first:
            continue
        checkpoint = checkpoint or turn.before is not None
        context = [entries[id_] for id_ in turn.context if id_ in entries]
        new = [entry for entry in entries.values() if entry.turn == turn.number and entry.written]
        if new:
            before, checkpoint = state.to_bytes() if checkpoint else None, False
            turns.append(replace(turn, context=tuple(entry.id for entry in context), before=before))
            state = await memories.write(state, messages_of(context), messages_of(new), kept.memory.key.tenant)
        seen = Seen(kept.memory.salt)
        for snapshot in kept.snapshots:
            if snapshot.turn == turn.number:
                marked = replace(seen, entries=snapshot.seen).without(places).entries
                snapshots.append(replace(snapshot, state=state.to_bytes(), tokens=state.tokens[0], seen=marked))
    return Replayed(state, turns, snapshots)


async def _rewrite(
    memories: ServedMemories, memory: Memory, replayed: Replayed, removed: Collection[str], places: Collection[int]
) -> Memory:
    changed = replace(
        memory,
        state=replayed.state.to_bytes(),
        tokens=replayed.state.tokens[0],
        seen=Seen(memory.salt, memory.seen).without(places).entries,
    )
    return await asyncio.to_thread(
        memories.store.rewrite, changed, removed=[*removed], turns=replayed.turns, snapshots=replayed.snapshots
    )


def _checkpoint(kept: Contents, number: int) -> Checkpoint:
    """The last state that is kept from before a turn, or from before an earlier one.

    Raises:
        StoreError: there is none.
    """
    for turn in reversed(kept.turns):
        if turn.number <= number and turn.before is not None:
            return Checkpoint(turn.number, turn.before)
    raise StoreError(f"the memory {kept.memory.key} has no state from before this message, so nothing can be undone; delete it")


def _no_message(key: Key, message: str) -> str:
    return f"the memory {key} has no message {message!r:.80}; list its messages for their ids"
