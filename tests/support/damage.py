"""Files as nobody's writer makes them, to see that they do no harm."""

import json
from typing import Any

from hypothesis import strategies as st

# Whatever a JSON text may hold, and numbers that no float or int64 does.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**400, -1, 0, 2**63]) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def flipped(content: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes changed."""

    def flip(flips: dict[int, int]) -> bytes:
        damaged = bytearray(content)
        for position, bits in flips.items():
            damaged[position] ^= bits
        return bytes(damaged)

    return st.dictionaries(st.integers(0, len(content) - 1), st.integers(1, 255), min_size=1, max_size=4).map(flip)


def cut(content: bytes) -> st.SearchStrategy[bytes]:
    """A file that ends too early."""
    return st.integers(0, len(content) - 1).map(lambda length: content[:length])


def inserted(content: bytes) -> st.SearchStrategy[bytes]:
    """A file with something in between, up to the end of its header."""
    more = st.binary(min_size=1, max_size=6)
    return st.tuples(st.integers(0, header_end(content)), more).map(lambda at: content[: at[0]] + at[1] + content[at[0] :])


def packed(tensors: dict[str, Any], metadata: dict[str, Any] | None, data: bytes = b"") -> bytes:
    """A safetensors file by hand, to say what its writer would not."""
    header = json.dumps({**({} if metadata is None else {"__metadata__": metadata}), **tensors}).encode()
    return len(header).to_bytes(8, "little") + header + data


def header_end(content: bytes) -> int:
    """Where the header of a safetensors file ends and its numbers begin."""
    return 8 + int.from_bytes(content[:8], "little")
