"""The wire format of protobuf, as much of it as OTLP needs. Pure.

A message is its fields, one after another: a tag, which is the number of a field and how its value is written, and the
value. Values of 64 bits are written by templates of ``struct``, in which a tag below field 16 is one byte.
"""

from functools import lru_cache
from typing import Final

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
"""How a value is written."""
_BITS_64: Final = (1 << 64) - 1
_LAST: Final = [bytes([value]) for value in range(128)]
_MORE: Final = [bytes([value | 128]) for value in range(128)]


def tag(field: int, kind: int) -> int:
    """Return the tag of a field."""
    return field << 3 | kind


def varint(value: int) -> bytes:
    """Return an integer of 64 bits in as few bytes as it needs; a negative one needs ten."""
    if 0 <= value < 128:
        return _LAST[value]
    return _MORE[value & 127] + varint((value & _BITS_64) >> 7)


def integer(field: int, value: int) -> bytes:
    """Return a field of an integer, an enumeration or a bool."""
    return varint(tag(field, VARINT)) + varint(value)


def signed(field: int, value: int) -> bytes:
    """Return a field of a ``sint32``, in which a negative integer is short too."""
    return integer(field, value << 1 if value >= 0 else ~(value << 1))


@lru_cache(maxsize=16384)
def head(field: int, size_bytes: int) -> bytes:
    """Return what comes before the bytes of a field."""
    return varint(tag(field, DELIMITED)) + varint(size_bytes)


def delimited(field: int, content: bytes) -> bytes:
    """Return a field of text, bytes or a message."""
    return head(field, len(content)) + content
