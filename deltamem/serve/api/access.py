"""Who may use the server: keys and their tenants, and how often."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from fastapi import Request

from deltamem.serve.api.errors import ApiError
from deltamem.store import Key

# The tenant of a server without keys.
LOCAL = "local"


class Access:
    """Finds the tenant of a request, and limits how many requests a tenant makes.

    Args:
        keys: the tenants by the SHA-256 digests of their keys; None for a server that only this machine can reach.
        rate: requests a minute and tenant; None for no limit.
    """

    def __init__(self, keys: Mapping[bytes, str] | None, rate: int | None = None) -> None:
        self._keys, self._rate = keys, rate
        self._left: dict[str, tuple[float, float]] = {}  # by tenant, the requests left and when

    def tenant(self, request: Request) -> str:
        """The tenant of a request.

        Raises:
            ApiError: it has no key or a wrong one, or there were too many requests.
        """
        tenant = LOCAL if self._keys is None else self._tenant_of(request.headers.get("authorization", ""))
        self._count(tenant)
        return tenant

    def _tenant_of(self, header: str) -> str:
        given = sha256(header.removeprefix("Bearer ").encode()).digest()
        found = None
        for digest, tenant in (self._keys or {}).items():  # every key is compared, so that the time tells nothing
            if hmac.compare_digest(digest, given):
                found = tenant
        if not header.startswith("Bearer ") or found is None:
            raise ApiError(
                401,
                "this key is not accepted; send 'Authorization: Bearer KEY' with one of the server's keys",
                "invalid_api_key",
            )
        return found

    def _count(self, tenant: str) -> None:
        if self._rate is None:
            return
        now = time.monotonic()
        left, when = self._left.get(tenant, (float(self._rate), now))
        left = min(self._rate, left + (now - when) * self._rate / 60)
        if left < 1:
            raise ApiError(429, f"more than {self._rate} requests a minute; wait, and try again", "rate_limit_exceeded")
        self._left[tenant] = left - 1, now


def read_keys(path: Path) -> dict[bytes, str]:
    """Read a file of keys, `TENANT KEY` on each line.

    Raises:
        ValueError: a line has another form, or two lines have one key.
    """
    keys: dict[bytes, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        tenant, *rest = line.split()
        digest = sha256(rest[0].encode()).digest() if len(rest) == 1 else b""
        if not digest or not rest[0].isascii() or len(rest[0]) < 16 or digest in keys:
            raise ValueError(
                f"{path}, line {number}: give 'TENANT KEY', with a key of at least 16 ASCII characters that no other line has"
            )
        Key(tenant, "any")  # checks the tenant's name
        keys[digest] = tenant
    if not keys:
        raise ValueError(f"{path} has no keys; give 'TENANT KEY' on each line")
    return keys
