"""A store's journals and snapshots: what is kept, copied, taken back and forgotten."""

from dataclasses import replace

import pytest
from stored import KEY, check_whole, entry, told, with_turns

from deltamem.store import Exists, Key, NotFound, Snapshot, StoreError, Turn

FORK = Key("acme", "fork")


def snapshots_of(store, key=KEY):
    return [snapshot.name for snapshot in store.snapshots(key)]


def test_messages_and_turns_are_kept_in_order(store):
    memory = store.create(KEY, b"0", journal=True)
    prompt = entry(1, 0, role="system", written=False)
    first = store.save(replace(memory, turn=1), entries=[entry(1, 1), prompt], turn=Turn(1, (prompt.id, "x"), b"0"))
    second = store.save(replace(first, turn=2), turn=Turn(2, (), None))
    assert store.entries(KEY) == [prompt, entry(1, 1)]
    assert store.turns(KEY) == [Turn(1, (prompt.id, "x"), b"0"), Turn(2, (), None)]
    assert store.turns(KEY, since=2) == [Turn(2, (), None)]
    assert store.load(KEY) == second


@pytest.mark.parametrize(
    "content", ["", "naïve 🙂", "a\0b", "\ud800", "x" * 1_000_000], ids=["", "text", "NUL", "half", "long"]
)
def test_a_message_may_be_any_text(store, content):
    memory = store.create(KEY, b"", journal=True)
    said = entry(1, content=content)
    store.save(replace(memory, turn=1), entries=[said])
    assert store.entries(KEY) == [said]


def test_a_rollback_takes_back_all_that_came_later(store):
    memory = with_turns(store, 2)
    kept = store.snapshot(KEY, "two", memory.version)
    assert kept == Snapshot("two", kept.created, 2, memory.tokens, memory.state, memory.seen)
    later = told(store, told(store, memory))
    store.snapshot(KEY, "four", later.version)
    assert snapshots_of(store) == ["two", "four"]
    back = store.rollback(KEY, "two", later.version)
    assert back == check_whole(store)
    assert (back.version, back.turn) == (later.version + 1, 2)
    assert snapshots_of(store) == ["two"]
    told(store, told(store, back))
    assert check_whole(store).turn == 4


def test_a_snapshot_is_there_once(store):
    memory = with_turns(store, 1)
    store.snapshot(KEY, "one", memory.version)
    with pytest.raises(Exists, match="has a snapshot 'one' already"):
        store.snapshot(KEY, "one", memory.version)
    with pytest.raises(NotFound, match="has no snapshot 'two'"):
        store.rollback(KEY, "two", memory.version)
    assert store.load(KEY) == memory


def test_a_fork_is_a_copy_that_goes_its_own_way(store):
    memory = with_turns(store, 2)
    store.snapshot(KEY, "two", memory.version)
    fork = store.fork(KEY, FORK)
    assert fork == check_whole(store, FORK)
    assert fork == replace(memory, key=FORK, version=1, created=fork.created, updated=fork.updated)
    assert fork.created > memory.created
    told(store, fork)
    store.rollback(KEY, "two", memory.version)
    store.delete(KEY)
    assert check_whole(store, FORK).turn == 3
    assert snapshots_of(store, FORK) == ["two"]
    with pytest.raises(NotFound):
        store.fork(KEY, Key("acme", "another"))


def test_a_fork_overwrites_nothing(store):
    with_turns(store, 2)
    there = with_turns(store, 1, FORK)
    with pytest.raises(Exists):
        store.fork(KEY, FORK)
    assert check_whole(store, FORK) == there


def test_a_fork_lives_as_long_as_its_source_would_from_now_on(store, clock):
    store.create(KEY, b"", ttl=10)
    clock[0] += 9
    assert store.fork(KEY, FORK).expires == clock[0] + 10


def test_forgetting_leaves_what_came_before_and_what_is_given(store):
    memory = with_turns(store, 2)
    for name in ("early", "given", "dropped"):
        store.snapshot(KEY, name, memory.version)
        memory = told(store, memory)  # the snapshots are of turns 2, 3 and 4, and the memory is in turn 5
    without = replace(memory, state=b"without 3", seen=("digest 1", "digest 2", "-digest 3", "digest 4", "digest 5"), tokens=12)
    turns = [Turn(3, (), b"state 2"), Turn(5, (entry(4).id, entry(5).id), None)]
    given = Snapshot("given", 1.0, 3, 6, b"snapshot without 3", ("-digest 3",))
    early = Snapshot("early", 1.0, 2, 6, b"early once more", ())
    after = store.rewrite(without, removed=[entry(3).id], turns=turns, snapshots=[given, early])
    assert after == store.load(KEY)
    assert after == replace(without, version=memory.version + 1, updated=after.updated)
    assert store.entries(KEY) == [entry(turn) for turn in (1, 2, 4, 5)]
    before = [Turn(1, (entry(1).id,), b"state 0"), Turn(2, (entry(2).id,), b"state 1")]
    assert store.turns(KEY) == [*before, *turns]
    assert {*snapshots_of(store)} == {"early", "given"}
    back = store.rollback(KEY, "given", after.version)
    assert (back.state, back.seen, back.tokens, back.turn) == (given.state, given.seen, 6, 3)
    assert store.turns(KEY) == [*before, turns[0]]
    assert store.entries(KEY) == [entry(1), entry(2)]
    assert store.rollback(KEY, "early", back.version).state == early.state


def test_what_may_contain_a_forgotten_message_goes_even_if_nobody_thinks_of_it(store):
    memory = with_turns(store, 2)
    store.snapshot(KEY, "two", memory.version)
    store.rewrite(replace(memory, state=b"without 2", turn=1), removed=[entry(2).id], turns=[], snapshots=[])
    assert [turn.number for turn in store.turns(KEY)] == [1]
    assert snapshots_of(store) == []


def test_forgetting_in_a_memory_without_a_journal(store):
    memory = store.create(KEY, b"")
    memory = store.save(replace(memory, turn=1, seen=("a",)), turn=Turn(1, (), b"before"))
    after = store.rewrite(replace(memory, seen=("-a",)), removed=[], turns=[Turn(1, (), None)], snapshots=[])
    assert store.load(KEY) == after
    assert store.turns(KEY) == [Turn(1, (), None)]


def test_a_refused_rewrite_changes_nothing(store):
    memory = with_turns(store, 3)
    store.snapshot(KEY, "three", memory.version)
    other, kept = replace(memory, state=b"other"), Snapshot("twice", 1.0, 1, 1, b"", ())
    with pytest.raises(NotFound, match="has no message 'nonsense'"):
        store.rewrite(other, removed=[entry(1).id, "nonsense"], turns=[], snapshots=[])
    with pytest.raises(StoreError, match="has one of these messages or turns already"):
        store.rewrite(other, removed=[entry(1).id], turns=[Turn(1, (), None)] * 2, snapshots=[])
    with pytest.raises(Exists, match="has a snapshot 'twice' already"):
        store.rewrite(other, removed=[entry(1).id], turns=[], snapshots=[kept, kept])
    assert check_whole(store) == memory
    assert snapshots_of(store) == ["three"]


def test_thousands_of_messages_are_forgotten_at_once(store):
    memory = store.create(KEY, b"", journal=True)
    messages = [entry(1, place) for place in range(5_000)]
    memory = store.save(replace(memory, turn=1), entries=messages)
    store.rewrite(memory, removed=[message.id for message in messages[1:]], turns=[], snapshots=[])
    assert store.entries(KEY) == messages[:1]
