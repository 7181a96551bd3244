"""What tests put into stores."""

from dataclasses import replace
from typing import Any

from deltamem.store import Entry, Key, Memory, Store, Turn

KEY = Key("acme", "anna")


def entry(turn: int, place: int = 0, **changes: Any) -> Entry:
    """A message whose parts all depend on its turn, so that a mixture of two would show."""
    made = Entry(f"{turn:04}{place:028}", turn, place, "user", f"message {turn}.{place}", float(turn), 3, True)
    return replace(made, **changes)


def told(store: Store, memory: Memory) -> Memory:
    """One more turn of one message."""
    number = memory.turn + 1
    message = entry(number)
    after = replace(
        memory,
        state=f"state {number}".encode(),
        seen=(*memory.seen, f"digest {number}"),
        tokens=memory.tokens + message.tokens,
        turn=number,
    )
    return store.save(after, entries=[message], turn=Turn(number, (message.id,), memory.state))


def with_turns(store: Store, turns: int, key: Key = KEY) -> Memory:
    """A new memory with a journal of some turns."""
    memory = store.create(key, b"state 0", journal=True)
    for _ in range(turns):
        memory = told(store, memory)
    return memory


def check_whole(store: Store, key: Key = KEY) -> Memory:
    """Load a memory that `with_turns` made, and check that its parts are of one turn."""
    memory = store.load(key)
    number = memory.turn
    assert memory.state == f"state {number}".encode()
    assert memory.seen == tuple(f"digest {turn}" for turn in range(1, number + 1))
    assert memory.tokens == 3 * number
    assert store.entries(key) == [entry(turn) for turn in range(1, number + 1)]
    assert store.turns(key) == [Turn(turn, (entry(turn).id,), f"state {turn - 1}".encode()) for turn in range(1, number + 1)]
    return memory
