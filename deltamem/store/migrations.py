"""The schema of the database, step by step."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, inspect, text

from deltamem.store.errors import StoreError

# NAME sorts by bytes, as SQLite does on its own; BYTES is any binary data.
TYPES = {
    "sqlite": {"NAME": "TEXT", "BYTES": "BLOB"},
    "postgresql": {"NAME": 'TEXT COLLATE "C"', "BYTES": "BYTEA"},
}
OF_A_MEMORY = "FOREIGN KEY (tenant, memory) REFERENCES memories ON DELETE CASCADE"
FIRST_TABLES = (
    """CREATE TABLE memories (
        tenant {NAME} NOT NULL, memory {NAME} NOT NULL, version INTEGER NOT NULL,
        created DOUBLE PRECISION NOT NULL, updated DOUBLE PRECISION NOT NULL, ttl DOUBLE PRECISION, expires DOUBLE PRECISION,
        state {BYTES} NOT NULL, tokens BIGINT NOT NULL, turn INTEGER NOT NULL, journal BOOLEAN NOT NULL,
        salt {BYTES} NOT NULL, seen TEXT NOT NULL,
        PRIMARY KEY (tenant, memory))""",
    "CREATE INDEX memories_by_expiry ON memories (expires)",
    f"""CREATE TABLE entries (
        tenant {{NAME}} NOT NULL, memory {{NAME}} NOT NULL, id {{NAME}} NOT NULL,
        turn INTEGER NOT NULL, place INTEGER NOT NULL, role {{BYTES}} NOT NULL, content {{BYTES}} NOT NULL,
        time DOUBLE PRECISION NOT NULL, tokens BIGINT NOT NULL, written BOOLEAN NOT NULL,
        PRIMARY KEY (tenant, memory, id), {OF_A_MEMORY})""",
    f"""CREATE TABLE turns (
        tenant {{NAME}} NOT NULL, memory {{NAME}} NOT NULL, number INTEGER NOT NULL,
        context TEXT NOT NULL, before {{BYTES}},
        PRIMARY KEY (tenant, memory, number), {OF_A_MEMORY})""",
    f"""CREATE TABLE snapshots (
        tenant {{NAME}} NOT NULL, memory {{NAME}} NOT NULL, name {{NAME}} NOT NULL,
        created DOUBLE PRECISION NOT NULL, turn INTEGER NOT NULL, tokens BIGINT NOT NULL,
        state {{BYTES}} NOT NULL, seen TEXT NOT NULL,
        PRIMARY KEY (tenant, memory, name), {OF_A_MEMORY})""",
    """CREATE TABLE leases (
        tenant {NAME} NOT NULL, memory {NAME} NOT NULL, holder TEXT NOT NULL, until DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (tenant, memory))""",
)


def make_first_tables(connection: Connection) -> None:
    """From nothing to version 1."""
    for statement in FIRST_TABLES:
        connection.execute(text(statement.format(**TYPES[connection.dialect.name])))


# Step N makes version N of version N - 1. A released step never changes: databases made by it exist.
STEPS: list[Callable[[Connection], None]] = [make_first_tables]
# Any number that no other program locks in the same PostgreSQL database.
LOCK = 0xDE17A


def migrate(connection: Connection) -> None:
    """Bring the database of an open, writing transaction to the newest version.

    Raises:
        StoreError: its version is newer than the newest known here.
    """
    if connection.dialect.name == "postgresql":  # SQLite's writing transactions run one at a time anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    version = _version(connection)
    if version > len(STEPS):
        raise StoreError(
            f"the database has version {version} of the schema, and this deltamem knows version {len(STEPS)}; install the "
            "deltamem that wrote it"
        )
    for step in STEPS[version:]:
        step(connection)
    connection.execute(text("UPDATE schema SET version = :version"), {"version": len(STEPS)})


def _version(connection: Connection) -> int:
    """The version of a database's schema; 0 for a new database, which gets the table that says so."""
    if not inspect(connection).has_table("schema"):
        connection.execute(text("CREATE TABLE schema (version INTEGER NOT NULL)"))
        connection.execute(text("INSERT INTO schema VALUES (0)"))
    return int(connection.execute(text("SELECT version FROM schema")).scalar_one())
