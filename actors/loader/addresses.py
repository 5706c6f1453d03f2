"""Addresses of a whole column at once: judged, tidied and keyed.

Plain ASCII addresses take a fast path, one regular expression over the joined column (0.1 us an address); everything
else goes through email-validator, which knows the RFCs and international addresses (some 30 us). The key is that of
`shm/address.py`, the one definition of "the same address"; for plain ASCII it is computed here in bulk, and a test
holds the two against each other.

Invariants
- What comes out is an address alone: no display name, no space, no line break.
- Nothing here looks an address up: no DNS, no SMTP probing.
- The spelling that was written is kept (white space around it excepted); only the key is folded.
"""

from __future__ import annotations

import re
from hashlib import sha256
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt

from shm import address as shm_address

__all__ = ["InvalidAddressError", "clean", "clean_column", "keys_of"]

LOCAL_BYTES_MAX: Final = 64  # RFC 5321 4.5.3.1.1
LABEL_BYTES_MAX: Final = 63  # RFC 1035 2.3.4
ADDRESS_BYTES_MAX: Final = 254  # RFC 5321 4.5.3.1.3, less the angle brackets

# A dot-atom, then labels, then a top-level domain of letters. Every quantifier is possessive: no address can make the
# expression step back, so its time is linear whatever a file holds.
_ATOM: Final = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
_PLAIN: Final = rb"%b(?:\.%b)*+@(?:[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+\.)++[A-Za-z]{2,}+" % (_ATOM, _ATOM)
_match_one: Final = re.compile(_PLAIN).fullmatch
_match_many: Final = re.compile(rb"(?:%b\n)*+" % _PLAIN).match

# Below this length an address cannot break any of the limits above.
_SHORT: Final = LABEL_BYTES_MAX


class InvalidAddressError(ValueError):
    """Why a text is not an address one can mail; its message is one clause for people."""


def clean(text: str) -> str:
    """The address in `text`, without the white space around it. Raises InvalidAddressError."""
    address = text.strip()
    if address.isascii() and _match_one(address.encode()) and _within_limits(address.encode()):
        return address
    _explain(address)
    import email_validator  # 40 ms: most files never need it

    try:
        return email_validator.validate_email(
            address, check_deliverability=False, test_environment=True, strict=True
        ).normalized
    except email_validator.EmailNotValidError as error:
        raise InvalidAddressError(str(error).rstrip(".")) from None


def clean_column(cells: list[bytes]) -> tuple[list[bytes], dict[int, str]]:
    """The addresses of a column, and the reason by index for each cell that is none.

    cells    UTF-8
    return   a list as long as `cells`; what stands at a rejected index means nothing
    """
    if not cells:
        return cells, {}
    joined = b"\n".join(cells) + b"\n"
    if joined.count(b"\n") != len(cells):  # a cell with a line break inside would shift all that follow
        cells = [cell.strip().replace(b"\n", b" ") for cell in cells]
        joined = b"\n".join(cells) + b"\n"
    odd = _not_plain(joined)
    if max(map(len, cells)) > _SHORT:
        odd = sorted({*odd, *(index for index, cell in enumerate(cells) if len(cell) > _SHORT)})
    rejected: dict[int, str] = {}
    if odd:
        cells = cells.copy()
    for index in odd:
        try:
            cells[index] = clean(cells[index].decode()).encode()
        except InvalidAddressError as error:
            rejected[index] = str(error)
    return cells, rejected


def keys_of(addresses: list[bytes]) -> npt.NDArray[np.uint64]:
    """Keys of clean addresses: u8 words of shape (n, 2), as a shard keeps them. 0.4 us an address."""
    joined = b"\n".join(addresses)
    if joined.isascii():
        digests = [sha256(address).digest() for address in joined.lower().split(b"\n")] if addresses else []
        words = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 4)
        return np.ascontiguousarray(words[:, :2])
    plain = [address.isascii() for address in addresses]
    keys = np.empty((len(addresses), 2), np.uint64)
    mask = np.array(plain)
    keys[mask] = keys_of(list(compress(addresses, plain)))
    odd = b"".join(shm_address.key(address.decode()) for address in addresses if not address.isascii())
    keys[~mask] = np.frombuffer(odd, np.uint64).reshape(-1, 2)
    return keys


def _not_plain(joined: bytes) -> list[int]:
    """Indices of the lines of `joined` that are no plain ASCII addresses."""
    odd: list[int] = []
    index = position = 0
    while True:
        match = _match_many(joined, position)
        assert match is not None, "the expression matches the empty string"
        end = match.end()
        if end == len(joined):
            return odd
        index += joined.count(b"\n", position, end)
        odd.append(index)
        position = joined.index(b"\n", end) + 1
        index += 1


def _within_limits(address: bytes) -> bool:
    local, _, domain = address.rpartition(b"@")
    return (
        len(address) <= ADDRESS_BYTES_MAX
        and len(local) <= LOCAL_BYTES_MAX
        and all(len(label) <= LABEL_BYTES_MAX for label in domain.split(b"."))
    )


def _explain(address: str) -> None:
    """Raise InvalidAddressError for the mistakes people make most, in their words."""
    if not address:
        raise InvalidAddressError("no address")
    if "<" in address or ">" in address:
        raise InvalidAddressError("a display name or angle brackets: write the address alone")
    if address.count("@") > 1:
        raise InvalidAddressError("more than one address")
    if "@" not in address:
        raise InvalidAddressError("no @ in the address")
    if any(character.isspace() for character in address):
        raise InvalidAddressError("a space inside the address")
