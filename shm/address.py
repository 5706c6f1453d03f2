"""The one definition of "the same address": normalise, then a 128-bit key.

May not: judge whether an address is valid (the loader does).

Two spellings are the same address when they differ in letter case, in surrounding white space, in Unicode
composition (NFC), or in the domain being written in letters or in its ASCII form (RFC 5890 A-labels). The local part
is lower-cased although RFC 5321 2.4 lets a server tell cases apart: no provider does, and a person who asked not to
be mailed must not be mailed because of a capital letter.
"""

from __future__ import annotations

import hashlib
import unicodedata

__all__ = ["KEY_SIZE", "key", "normalise"]

KEY_SIZE = 16  # bytes: at 20 million addresses the chance that any two share a key is below 1e-24

_sha256 = hashlib.sha256


def normalise(address: str) -> str:
    """Return the spelling that all spellings of an address share. Total: never raises, whatever comes in."""
    text = address.strip()
    if text.isascii():
        return text.lower()
    local, at, domain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).rpartition("@")
    if not at:
        return domain
    return f"{local}@{domain if domain.isascii() else _ascii_domain(domain)}"


def key(address: str) -> bytes:
    """Return the 16-byte key of an address: the first 128 bits of SHA-256 of its normalised spelling."""
    return _sha256(normalise(address).encode("utf-8", "surrogatepass")).digest()[:KEY_SIZE]


def _ascii_domain(domain: str) -> str:
    """Return the A-labels of a lower-cased domain, or the domain itself where it has none."""
    try:
        import idna
    except ImportError:
        pass
    else:
        try:
            return idna.encode(domain, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            pass  # IDNA 2003 knows labels that 2008 refuses (emoji)
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain
