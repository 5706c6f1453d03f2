"""Frames and times."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.timefmt import rfc3339

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 2**22), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: object) -> None:
    """What is packed is unpacked to an equal value; surrogates, which UTF-8 has not, are refused."""
    assert codec.unpack(codec.pack(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_unpack_or_are_a_bad_request(data: bytes) -> None:
    """Whatever a stranger sends, nothing but EcmError is raised."""
    with suppress(EcmError):
        codec.unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\x81\x90\x01",
        b"\x01\x02",
        msgpack.packb(msgpack.ExtType(5, b"x")),
        b"\xc0" * (codec.MESSAGE_BYTES_MAX + 1),
    ],
    ids=["nothing", "deep", "huge claims", "list as key", "two values", "extension", "too large"],
)
def test_hostile_frames_are_bad_requests(data: bytes) -> None:
    """Depth, claimed sizes, keys, trailing bytes, extensions and length all have a limit."""
    with pytest.raises(EcmError) as caught:
        codec.unpack(data)
    assert caught.value.code == "bad_request"


def test_text_that_is_not_utf8_is_named() -> None:
    """A file name in another encoding cannot travel, and the error shows it."""
    with pytest.raises(EcmError, match=r"caf\\udce9"):
        codec.pack({"path": "caf\udce9.csv"})


def test_too_large_a_message_is_refused_by_its_sender() -> None:
    """The sender learns it, not the peer."""
    with pytest.raises(EcmError, match="too large"):
        codec.pack(b"x" * codec.MESSAGE_BYTES_MAX)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (1795516093.123, "2026-11-24T10:28:13.123Z"),
        (0.9996, "1970-01-01T00:00:01.000Z"),
        (951782400, "2000-02-29T00:00:00.000Z"),
    ],
)
def test_times_are_utc_to_the_millisecond(seconds: float | None, text: str | None) -> None:
    """RFC 3339 in UTC; rounding carries into the seconds."""
    assert rfc3339(seconds) == text
