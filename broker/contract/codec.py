"""Bytes of a ZeroMQ frame to plain values and back: msgpack with limits.

May import msgpack only. Every message between processes, and to and from clients, passes through here.

Invariants
- What `unpack` returns holds only None, bool, int, float, str, bytes, list and dict.
- Whatever the bytes are, `unpack` returns or raises `EcmError`, nothing else: a stranger's frame must never
  end the engine.
"""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from broker.contract.errors import EcmError

__all__ = ["ITEMS_MAX", "MESSAGE_BYTES_MAX", "VERSION", "pack", "unpack"]

VERSION = 1

# A campaign travels with its templates in one message; 32 MiB is far above any mail a relay accepts.
MESSAGE_BYTES_MAX = 32 << 20

# msgpack makes room for as many items as a header claims before it has read them; nested headers of a few bytes
# could claim all memory. No message of ours comes near this.
ITEMS_MAX = 1 << 20


def pack(obj: Any) -> bytes:
    """`obj` as msgpack.

    Raises EcmError `bad_request` if it is larger than `MESSAGE_BYTES_MAX` or holds text that UTF-8 cannot
    carry (a file name in another encoding, say). Anything msgpack has no form for is a fault of ours: TypeError.
    """
    try:
        data: bytes = msgpack.packb(obj)
    except UnicodeEncodeError as error:
        text = ascii(error.object)
        raise EcmError("bad_request", f"text that is not UTF-8: {text}", hint="rename the file") from error
    if len(data) > MESSAGE_BYTES_MAX:
        raise EcmError("bad_request", f"a message of {len(data)} bytes is too large, at most {MESSAGE_BYTES_MAX}")
    return data


def unpack(data: bytes | memoryview) -> Any:
    """The values in `data`. Raises EcmError `bad_request` for anything but one whole msgpack value in limits."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise EcmError("bad_request", f"a message of {len(data)} bytes is too large, at most {MESSAGE_BYTES_MAX}")
    try:
        # Keys need not be text: samples are keyed by process id.
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            max_array_len=ITEMS_MAX,
            max_map_len=ITEMS_MAX,
            ext_hook=_no_extension,
            timestamp=1,
        )
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise EcmError("bad_request", f"not a msgpack value: {str(error) or type(error).__name__}") from error


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")
