"""What is deleted is gone from SQLite's files, too."""

from dataclasses import replace
from pathlib import Path

import pytest
from stored import KEY, entry, told, with_turns

from deltamem.store import Store, database
from deltamem.store.database import Database

SECRET = b"the password is swordfish"
SIZES = {"in a page": 1, "over many pages": 1_000}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if SECRET in path.read_bytes())


def confide(store: Store, times: int, ttl: float | None = None) -> None:
    """Put the secret into a message, a state, a checkpoint and a snapshot, beside another memory that stays."""
    with_turns(store, 1, KEY._replace(memory="other"))
    memory = told(store, store.create(KEY, b"", journal=True, ttl=ttl))
    store.snapshot(KEY, "before", memory.version)
    message = entry(2, content=SECRET.decode() * times)
    memory = replace(memory, state=SECRET * times, turn=2)
    memory = store.save(memory, entries=[message])
    store.snapshot(KEY, "after", memory.version)
    store.lease(KEY, "someone", 60)


def delete(store: Store) -> None:
    store.delete(KEY)


def forget(store: Store) -> None:
    store.rewrite(replace(store.load(KEY), state=b"", turn=1), removed=[entry(2).id], turns=[], snapshots=[])


def take_back(store: Store) -> None:
    store.rollback(KEY, "before", store.load(KEY).version)


@pytest.mark.parametrize("times", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("way", [delete, forget, take_back])
def test_nothing_is_left_of_what_was_deleted(tmp_path, way, times):
    store, beside = Store(tmp_path / "memories.db"), Store(tmp_path / "memories.db")
    confide(store, times)
    beside.load(KEY)
    assert left_in(tmp_path)
    way(store)
    assert left_in(tmp_path) == []
    store.close()
    beside.close()
    assert left_in(tmp_path) == []


def test_nothing_is_left_of_what_expired(tmp_path, clock):
    store = Store(tmp_path / "memories.db")
    confide(store, 1, ttl=10)
    clock[0] += 10
    assert store.expire() == 1
    assert left_in(tmp_path) == []
    store.close()


def test_what_a_reader_holds_back_goes_later(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.05)
    store, beside = Store(tmp_path / "memories.db"), Database(tmp_path / "memories.db")
    confide(store, 1)
    with beside.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM memories").all()
        store.delete(KEY)
        assert left_in(tmp_path)
    store.expire()
    assert left_in(tmp_path) == []
    beside.close()
    store.close()


def test_without_wiping_it_would_be_left_in_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Database, "wipe", lambda self: None)
    store = Store(tmp_path / "memories.db")
    confide(store, 1)
    store.delete(KEY)
    assert left_in(tmp_path) == ["memories.db-wal"]
    store.close()


def test_without_overwriting_it_would_be_left_in_the_database(tmp_path, monkeypatch):
    pragmas = [pragma.replace("secure_delete=ON", "secure_delete=OFF") for pragma in database.PRAGMAS]
    monkeypatch.setattr(database, "PRAGMAS", pragmas)
    store = Store(tmp_path / "memories.db")
    confide(store, 1_000)
    store.delete(KEY)
    assert left_in(tmp_path) == ["memories.db"]
    store.close()
