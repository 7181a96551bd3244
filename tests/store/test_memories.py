"""A store's memories: each is found by its tenant and name alone, until it expires or is deleted."""

from dataclasses import replace

import pytest
from stored import KEY, entry, told, with_turns

from deltamem.store import Exists, Key, NotFound, Stale, Store, StoreError, Turn

OTHER = Key("globex", "anna")


def test_a_memory_is_loaded_as_it_was_made(store):
    memory = store.create(KEY, bytes(range(256)), journal=True, tokens=2**40)
    assert store.load(KEY) == memory
    assert (memory.version, memory.turn, memory.seen, memory.expires, len(memory.salt)) == (1, 0, (), None, 16)
    assert store.create(OTHER, b"").salt != memory.salt
    assert type(store.load(KEY).state) is bytes


def test_a_change_is_loaded_as_it_was_saved(store):
    memory = store.create(KEY, b"old")
    saved = store.save(replace(memory, state=b"new", seen=("a", "-b"), tokens=7, turn=1))
    assert saved == store.load(KEY)
    assert (saved.version, saved.state, saved.seen, saved.tokens, saved.turn) == (2, b"new", ("a", "-b"), 7, 1)
    assert saved.updated > memory.updated == saved.created


def test_a_name_is_taken_once(store):
    first = store.create(KEY, b"first")
    with pytest.raises(Exists, match="the memory 'anna' of 'acme' exists already"):
        store.create(KEY, b"second")
    assert store.load(KEY) == first


def test_only_the_version_that_was_loaded_is_changed(store):
    first = with_turns(store, 1)
    second = told(store, first)
    with pytest.raises(Stale, match="was changed since it was loaded"):
        told(store, first)
    with pytest.raises(Stale, match="was changed since it was loaded"):
        store.rewrite(first, removed=[], turns=[], snapshots=[])
    with pytest.raises(Stale, match="has version 3, not 2"):
        store.snapshot(KEY, "now", first.version)
    with pytest.raises(Stale, match="has version 3, not 2"):
        store.rollback(KEY, "now", first.version)
    assert store.load(KEY) == second
    assert len(store.entries(KEY)) == 2


def test_what_is_deleted_is_not_written_again(store):
    memory = with_turns(store, 1)
    store.snapshot(KEY, "now", memory.version)
    store.delete(KEY)
    for call in (store.load, store.delete, store.entries, store.turns, store.snapshots):
        with pytest.raises(NotFound):
            call(KEY)
    with pytest.raises(NotFound):
        told(store, memory)
    anew = with_turns(store, 1)
    assert anew.version == memory.version  # which alone would let the old one pass
    with pytest.raises(Stale):
        told(store, memory)
    assert store.load(KEY) == anew
    assert store.snapshots(KEY) == []


def test_tenants_do_not_see_each_other(store):
    mine, others = with_turns(store, 2), with_turns(store, 3, OTHER)
    store.snapshot(OTHER, "theirs", others.version)
    assert [summary.key for summary in store.names("acme")] == [KEY]
    assert store.names("initech") == []
    with pytest.raises(NotFound, match="has no snapshot 'theirs'"):
        store.rollback(KEY, "theirs", mine.version)
    with pytest.raises(NotFound, match="has no message"):
        store.rewrite(mine, removed=[entry(3).id], turns=[], snapshots=[])
    assert store.load(KEY) == mine
    store.delete(KEY)
    assert store.load(OTHER) == others
    assert (len(store.entries(OTHER)), len(store.turns(OTHER)), len(store.snapshots(OTHER))) == (3, 3, 1)


def test_names_come_in_pages_sorted_by_bytes(store):
    names = ["B", "a", "a.b", "a:b", "aa", "b", "Z", "_", "0"]
    for name in names:
        store.create(Key("acme", name), b"long " * 100)
    found, after = [], ""
    while page := store.names("acme", after, limit=4):
        assert len(page) <= 4
        found += [summary.key.memory for summary in page]
        after = found[-1]
    assert found == sorted(names)
    assert not hasattr(store.names("acme")[0], "state")


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a/b", "é", "a\n", "a\0", None, 7])
def test_a_name_that_is_not_accepted_is_refused(name, store):
    for make in (lambda: Key(name, "anna"), lambda: Key("acme", name)):
        with pytest.raises(ValueError, match=r"is not accepted; give 1 to 64 of"):
            make()
    store.create(KEY, b"")
    for call in (lambda: store.snapshot(KEY, name, 1), lambda: store.rollback(KEY, name, 1), lambda: store.names(name)):
        with pytest.raises(ValueError, match=r"is not accepted; give 1 to 64 of"):
            call()


def test_a_memory_expires_unless_it_is_changed(store, clock):
    memory = store.create(KEY, b"", ttl=10, journal=True)
    kept = store.create(OTHER, b"")
    clock[0] += 9
    memory = told(store, memory)
    assert memory.expires == clock[0] + 10
    clock[0] += 9
    assert store.load(KEY) == memory
    assert store.expire() == 0
    clock[0] += 1
    assert store.names("acme") == []
    for call in (
        lambda: store.load(KEY),
        lambda: store.entries(KEY),
        lambda: told(store, memory),
        lambda: store.snapshot(KEY, "now", memory.version),
        lambda: store.fork(KEY, Key("acme", "other")),
    ):
        with pytest.raises(NotFound, match="does not exist, or has expired"):
            call()
    assert store.expire() == 1
    assert store.expire() == 0
    assert store.load(OTHER) == kept


def test_an_expired_memory_gives_way_to_a_new_one(store, clock):
    told(store, store.create(KEY, b"", ttl=10, journal=True))
    clock[0] += 10
    store.create(KEY, b"new", journal=True)
    assert store.load(KEY).state == b"new"
    assert store.entries(KEY) == []


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_lifetime_that_is_not_accepted_is_refused(store, ttl):
    with pytest.raises(ValueError, match="is not accepted; give a finite number of seconds above 0"):
        store.create(KEY, b"", ttl=ttl)
    with pytest.raises(NotFound):
        store.load(KEY)


def test_a_refused_save_changes_nothing(store):
    memory = with_turns(store, 1)
    later = replace(memory, turn=2, state=b"other")
    with pytest.raises(StoreError, match="the turn 3 does not belong to a memory in turn 2"):
        store.save(later, turn=Turn(3, (), None))
    with pytest.raises(StoreError, match="has one of these messages or turns already"):
        store.save(later, entries=[entry(2), entry(1)], turn=Turn(2, (), None))
    with pytest.raises(StoreError, match="has one of these messages or turns already"):
        store.save(replace(memory, state=b"other"), entries=[entry(2)], turn=Turn(1, (), None))
    assert store.load(KEY) == memory
    assert store.entries(KEY) == [entry(1)]
    without = store.create(OTHER, b"")
    with pytest.raises(StoreError, match="keeps no messages"):
        store.save(without, entries=[entry(1)])


def test_another_process_sees_what_was_saved(url, store):
    memory = with_turns(store, 2)
    other = Store(url)
    assert other.load(KEY) == memory
    told(other, memory)
    assert store.load(KEY).turn == 3
    other.close()
