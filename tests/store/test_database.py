"""How a database is opened, brought to the newest schema, lost and found again."""

import os
import sqlite3
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from stored import KEY, check_whole, told, with_turns

from deltamem.store import Store, StoreError, Unavailable, database, migrations, tables
from deltamem.store.database import Database

SAVED_BEFORE = Path(__file__).parent / "saved_before"


def add_colour(connection):
    connection.execute(text("ALTER TABLE memories ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'"))


def test_the_tables_are_those_that_queries_expect(url):
    Store(url).close()
    opened = Database(url)
    with opened.reading() as connection:
        found = inspect(connection)
        for table in (tables.memories, tables.entries, tables.turns, tables.snapshots, tables.leases):
            assert [column["name"] for column in found.get_columns(table.name)] == [column.name for column in table.c]
    opened.close()


def test_an_older_database_is_brought_up_to_date(url, monkeypatch):
    before = Store(url)
    memory = with_turns(before, 3)
    before.close()
    monkeypatch.setattr(migrations, "STEPS", [*migrations.STEPS, add_colour])
    for _ in range(2):  # the second time, nothing is left to do
        after = Store(url)
        assert check_whole(after) == after.load(KEY)
        assert after.load(KEY) == memory
        after.close()
    opened = Database(url)
    with opened.reading() as connection:
        assert connection.execute(text("SELECT schema.version, colour FROM schema, memories")).all() == [(2, "blue")]
    opened.close()


def test_a_step_that_fails_leaves_the_older_database(url, monkeypatch):
    before = Store(url)
    with_turns(before, 1)

    def fail(connection):
        add_colour(connection)
        connection.execute(text("SELECT * FROM nowhere"))

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "STEPS", [*migrations.STEPS, fail])
        with pytest.raises(Unavailable, match=r"does not answer: .*nowhere"):
            Store(url)
    told(before, check_whole(before))
    before.close()
    monkeypatch.setattr(migrations, "STEPS", [*migrations.STEPS, add_colour])
    Store(url).close()


def test_a_newer_database_is_refused_and_untouched(url, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "STEPS", [*migrations.STEPS, add_colour])
        Store(url).close()
    for _ in range(2):
        with pytest.raises(StoreError, match="the database has version 2 of the schema, and this deltamem knows version 1"):
            Store(url)


def test_a_database_of_the_first_release_is_read(tmp_path):
    connection = sqlite3.connect(tmp_path / "memories.db")
    connection.executescript((SAVED_BEFORE / "version_1.sql").read_text())
    connection.close()
    store = Store(tmp_path / "memories.db")
    memory = check_whole(store)
    assert (memory.turn, memory.version, memory.ttl, memory.salt) == (3, 4, None, bytes(range(16)))
    assert [snapshot.turn for snapshot in store.snapshots(KEY)] == [3]
    told(store, memory)
    store.close()


@pytest.mark.parametrize("form", ["path", "str", "url"])
def test_a_file_is_named_by_its_path_or_a_url(tmp_path, form):
    path = tmp_path / "memories.db"
    store = Store({"path": path, "str": str(path), "url": f"sqlite:///{path}"}[form])
    assert path.is_file()
    store.close()


@pytest.mark.parametrize(
    "url",
    ["mysql://me:secret@host/db", "postgresql+asyncpg://me:secret@host/db", "://secret", "postgresql://me:secret@host:port/db"],
)
def test_another_kind_of_database_is_refused_without_its_password(url):
    with pytest.raises(ValueError, match=r"the database .*://\.\.\. is not accepted; give the path of a file") as refused:
        Store(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(ValueError, match="a store in SQLite needs a file"):
        Store(url)


def test_postgresql_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"pip install 'deltamem\[postgres\]'"):
        Store("postgresql://me@host/db")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_is_for_its_owner_alone(tmp_path):
    store = Store(tmp_path / "memories.db")
    with_turns(store, 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 3
    assert {*modes.values()} == {0o600}
    store.close()


def test_a_path_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(Unavailable, match=r"cannot be opened: .*No such file"):
        Store(tmp_path / "missing" / "memories.db")
    with pytest.raises(ValueError, match="a folder, where a file belongs"):
        Store(tmp_path)
    (tmp_path / "letter.txt").write_text("Dear Anna, " * 1_000)
    with pytest.raises(Unavailable, match="file is not a database"):
        Store(tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "Dear Anna, " * 1_000


def test_a_database_that_is_locked_too_long_is_unavailable(url, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 1)
    store, other = Store(url), Database(url)
    memory = with_turns(store, 1)
    with other.writing() as connection:
        connection.execute(text("SELECT * FROM memories FOR UPDATE" if "postgresql" in url else "SELECT 1"))
        with pytest.raises(Unavailable, match=r"does not answer: .*lock"):
            told(store, memory)
        assert check_whole(store) == memory  # readers do not wait
    told(store, memory)
    assert check_whole(store).turn == 2
    store.close()
    other.close()


def test_a_server_that_is_away_is_unavailable_until_it_is_back(server):
    url = server.new_database()
    store = Store(url)
    memory = with_turns(store, 1)
    with ThreadPoolExecutor(4) as threads:  # several connections that will be lost
        list(threads.map(store.load, [KEY] * 20))
    server.stop()
    try:
        for call in (lambda: store.load(KEY), lambda: told(store, memory), lambda: store.lease(KEY, "first", 9)):
            with pytest.raises(Unavailable, match="does not answer"):
                call()
        with pytest.raises(Unavailable, match="does not answer"):
            Store(url)
    finally:
        server.start()
    with ThreadPoolExecutor(4) as threads:
        assert {*threads.map(lambda _: store.load(KEY).version, range(20))} == {memory.version}
    told(store, memory)
    assert check_whole(store).turn == 2
    store.close()


def test_an_error_does_not_show_what_users_said(url):
    store, other = Store(url), Database(url)
    memory = with_turns(store, 1)
    with other.writing() as connection:
        connection.execute(text("DROP TABLE entries"))
    with pytest.raises(Unavailable) as failed:
        told(store, memory)
    shown, error = "", failed.value
    while error is not None:
        shown, error = f"{shown} {error}", error.__cause__ or error.__context__
    assert "entries" in shown
    assert "message 2" not in shown
    assert store.load(KEY) == memory
    store.close()
    other.close()
