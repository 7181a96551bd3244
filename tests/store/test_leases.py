"""Leases: a name belongs to one holder at a time."""

import pytest
from stored import KEY

from deltamem.store import Key


def test_a_lease_has_one_holder(store):
    assert store.lease(KEY, "first", 60)  # of a memory that does not exist yet
    assert not store.lease(KEY, "second", 60)
    assert store.lease(Key("globex", "anna"), "second", 60)
    assert store.lease(Key("acme", "berta"), "second", 60)
    store.release(KEY, "second")
    assert not store.lease(KEY, "second", 60)
    store.release(KEY, "first")
    assert store.lease(KEY, "second", 60)


def test_a_lease_is_renewed_by_its_holder_and_taken_over_when_it_ends(store, clock):
    assert store.lease(KEY, "first", 10)
    clock[0] += 9
    assert store.lease(KEY, "first", 10)
    clock[0] += 9
    assert not store.lease(KEY, "second", 10)
    clock[0] += 1
    assert store.lease(KEY, "second", 10)
    assert not store.lease(KEY, "first", 10)


def test_leases_that_ended_are_cleared_away(store, clock):
    store.lease(KEY, "first", 10)
    store.lease(Key("acme", "berta"), "second", 20)
    clock[0] += 10
    assert store.expire() == 0
    clock[0] -= 10  # only a lease that is still there refuses now
    assert store.lease(KEY, "third", 10)
    assert not store.lease(Key("acme", "berta"), "third", 10)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_length_that_is_not_accepted_is_refused(store, seconds):
    with pytest.raises(ValueError, match="is not accepted; give a finite number of seconds above 0"):
        store.lease(KEY, "first", seconds)
    assert store.lease(KEY, "second", 60)
