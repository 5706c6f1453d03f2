"""Addresses of a column: which are taken, what is said of the others, and their keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.loader.addresses import InvalidAddressError, clean, clean_column, keys_of
from shm import address as shm_address

GOOD = [
    "a@b.cc",
    "first.last+tag@sub.example.com",
    "O'Neil_%x@ex-ample.co.uk",
    "UPPER@EXAMPLE.COM",
    "jörg@example.com",
    "info@müller.de",
    "x@xn--mller-kva.de",
    f"{'l' * 64}@{'d' * 63}.com",
]
BAD = {
    "": "no address",
    "   ": "no address",
    "plain": "no @ in the address",
    "Ann <ann@example.com>": "a display name or angle brackets: write the address alone",
    "a b@example.com": "a space inside the address",
    "a@b.cc, c@d.ee": "more than one address",
}


@pytest.mark.parametrize("text", GOOD)
def test_good_address_is_kept_as_it_was_written(text: str) -> None:
    """An address is taken in its own spelling, white space around it excepted."""
    assert clean(f" {text}\t") == text


@pytest.mark.parametrize(("text", "reason"), BAD.items())
def test_common_mistakes_are_told_in_plain_words(text: str, reason: str) -> None:
    """The mistakes people make most have reasons of their own."""
    with pytest.raises(InvalidAddressError, match="^" + reason.replace(".", "\\.") + "$"):
        clean(text)


@pytest.mark.parametrize(
    "text",
    [
        "a..b@example.com",
        ".a@example.com",
        "a.@example.com",
        "a@example",
        "a@-example.com",
        "a@example-.com",
        "a@exa mple.com",
        "a@example..com",
        "a@.com",
        "@example.com",
        "a@",
        "a@b@c.com",
        f"{'l' * 65}@example.com",
        f"a@{'d' * 64}.com",
        f"a@{'.'.join(['d' * 60] * 5)}.com",
        "a@example.com\nBcc: b@example.com",
        "a\x00@example.com",
    ],
)
def test_impossible_addresses_are_refused(text: str) -> None:
    """What RFC 5321 does not allow, or could break a header, is no address."""
    with pytest.raises(InvalidAddressError):
        clean(text)


def test_column_is_judged_as_its_cells_alone() -> None:
    """Good, bad and odd cells side by side, line breaks inside them too, get the verdict each would get alone."""
    texts = [*GOOD, *BAD, "x@y.zz", " spaced@example.com ", "new\nline@example.com", "a@b.cc"] * 3
    addresses, rejected = clean_column([text.encode() for text in texts])
    for index, text in enumerate(texts):
        try:
            expected = clean(text)
        except InvalidAddressError:
            assert index in rejected
        else:
            assert index not in rejected
            assert addresses[index].decode() == expected


def test_column_of_good_addresses_is_returned_as_it_is() -> None:
    """Nothing is copied or changed where nothing is odd."""
    cells = [b"a@b.cc", b"c@d.ee"]
    assert clean_column(cells) == (cells, {})
    assert clean_column([]) == ([], {})


LOCAL = st.text("abcXYZ019._+-äß", min_size=1, max_size=12)
DOMAIN = st.lists(st.text("abcXYZ019-éß", min_size=1, max_size=8), min_size=1, max_size=3).map(".".join)


@given(st.lists(st.builds(lambda local, domain: f"{local}@{domain}", LOCAL, DOMAIN), max_size=8))
def test_keys_in_bulk_are_those_of_the_one_definition(texts: list[str]) -> None:
    """Whatever a file holds, an address has the key that shm/address.py gives it."""
    addresses, rejected = clean_column([text.encode() for text in texts])
    good = [address for index, address in enumerate(addresses) if index not in rejected]
    expected = b"".join(shm_address.key(address.decode()) for address in good)
    assert keys_of(good).tobytes() == expected
    assert keys_of(good).dtype == np.uint64
