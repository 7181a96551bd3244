"""The tables of the newest version of the schema, for queries. `migrations.py` makes them."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    insert,
    literal,
    select,
)

from deltamem.store.records import Key


class Words(TypeDecorator[str]):
    """Any string, also with NUL characters and lone surrogates, which PostgreSQL's own text refuses."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> bytes | None:
        """Encode on the way in."""
        return None if value is None else value.encode("utf-8", "surrogatepass")

    def process_result_value(self, value: bytes | None, dialect: Any) -> str | None:
        """Decode on the way out."""
        return None if value is None else bytes(value).decode("utf-8", "surrogatepass")


class Strings(TypeDecorator[tuple[str, ...]]):
    """Several strings, as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Any) -> str | None:
        """Encode on the way in."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Any) -> tuple[str, ...] | None:
        """Decode on the way out."""
        return None if value is None else tuple(json.loads(value))


def _table(name: str, *columns: Column[Any]) -> Table:
    return Table(name, MetaData(), Column("tenant", Text), Column("memory", Text), *columns)


memories = _table(
    "memories",
    Column("version", Integer),
    Column("created", Double),
    Column("updated", Double),
    Column("ttl", Double),
    Column("expires", Double),
    Column("state", LargeBinary),
    Column("tokens", BigInteger),
    Column("turn", Integer),
    Column("journal", Boolean),
    Column("salt", LargeBinary),
    Column("seen", Strings),
)
entries = _table(
    "entries",
    Column("id", Text),
    Column("turn", Integer),
    Column("place", Integer),
    Column("role", Words),
    Column("content", Words),
    Column("time", Double),
    Column("tokens", BigInteger),
    Column("written", Boolean),
)
turns = _table("turns", Column("number", Integer), Column("context", Strings), Column("before", LargeBinary))
snapshots = _table(
    "snapshots",
    Column("name", Text),
    Column("created", Double),
    Column("turn", Integer),
    Column("tokens", BigInteger),
    Column("state", LargeBinary),
    Column("seen", Strings),
)
leases = _table("leases", Column("holder", Text), Column("until", Double))


def of(table: Table, key: Key) -> ColumnElement[bool]:
    """The rows of one memory."""
    return (table.c.tenant == key.tenant) & (table.c.memory == key.memory)


def columns(table: Table, record: type[Any]) -> list[Column[Any]]:
    """The columns that a record's fields are named after."""
    return [table.c[field.name] for field in fields(record) if field.name in table.c]


def values(key: Key, record: Any) -> dict[str, Any]:
    """A record's fields as the values of a row."""
    return {"tenant": key.tenant, "memory": key.memory, **vars(record)}


def copy_rows(connection: Connection, table: Table, key: Key, to: Key) -> None:
    """Copy the rows of one memory for another."""
    others = [column for column in table.c if column.name not in key._fields]
    rows = select(literal(to.tenant), literal(to.memory), *others).where(of(table, key))
    connection.execute(insert(table).from_select(["tenant", "memory", *(column.name for column in others)], rows))
