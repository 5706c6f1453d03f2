"""The same address is the same key, however it is written."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.address import key, normalise


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("  Anna@Example.COM\t", "anna@example.com"),
        ("Jörg@BÜCHER.example", "jörg@xn--bcher-kva.example"),
        ("jo\u0308rg@bu\u0308cher.example", "jörg@xn--bcher-kva.example"),
        ("jörg@xn--bcher-kva.example", "jörg@xn--bcher-kva.example"),
        ("a@STRASSE.example", "a@strasse.example"),
        ("a@例え.テスト", "a@xn--r8jz45g.xn--zckzah"),
        ("a@☃.example", "a@xn--n3h.example"),
        ('"Odd @ Local"@example.com', '"odd @ local"@example.com'),
        ("no-at-sign", "no-at-sign"),
        ("", ""),
    ],
)
def test_spellings_of_one_address_are_one(written: str, meant: str) -> None:
    """Case, white space, composition and the form of the domain make no difference."""
    assert normalise(written) == meant


def test_a_key_is_the_head_of_sha_256() -> None:
    """16 bytes, the same in every version: shards and the store keep them."""
    assert key(" A@B.example ") == hashlib.sha256(b"a@b.example").digest()[:16]


@given(st.text(max_size=40))
def test_any_text_has_a_key_and_normalising_twice_changes_nothing(text: str) -> None:
    """Nothing that an import may contain raises, and a normalised address is its own normal form."""
    once = normalise(text)
    assert normalise(once) == once
    assert len(key(text)) == 16
