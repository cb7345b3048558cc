"""The payload of one entry: many events that are already encoded, behind one msgpack array header.

Nothing is decoded and encoded again: packing is a concatenation. Knows neither buffers nor what an event means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from fluxgate_mw.errors import EventDecodeError

__all__ = ["count", "pack", "unpack"]

_RAW: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_FIXARRAY, _ARRAY16, _ARRAY32 = 0x90, 0xDC, 0xDD
_FIXARRAY_MAX, _ARRAY16_MAX = 15, 0xFFFF


def pack(encoded: Sequence[bytes]) -> bytes:
    r"""Return one payload that holds these encoded events, in order.

    Concurrency: any thread.

    Source: the array family of the MessagePack specification, read 2026-08.

    >>> unpack(pack([b"\x80", b"\x80"]))
    [b'\x80', b'\x80']
    """
    size = len(encoded)
    if size <= _FIXARRAY_MAX:
        header = bytes((_FIXARRAY | size,))
    elif size <= _ARRAY16_MAX:
        header = bytes((_ARRAY16,)) + size.to_bytes(2, "big")
    else:
        header = bytes((_ARRAY32,)) + size.to_bytes(4, "big")
    return header + b"".join(encoded)


def unpack(payload: bytes) -> list[bytes]:
    """Return the encoded events of a payload, each still encoded.

    Raises:
        EventDecodeError: The bytes are no whole msgpack array.

    Concurrency: any thread.
    """
    try:
        return [bytes(raw) for raw in _RAW.decode(payload)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EventDecodeError(f"not a pack of events ({type(error).__name__})") from error


def count(payload: bytes) -> int:
    """Return how many events a payload says it holds, from its header alone; 0 where it is no pack."""
    first = payload[0] if payload else 0
    if first & 0xF0 == _FIXARRAY:
        return first & 0x0F
    width = {_ARRAY16: 2, _ARRAY32: 4}.get(first, 0)
    return int.from_bytes(payload[1 : 1 + width], "big")
