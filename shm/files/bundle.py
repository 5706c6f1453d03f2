"""The bundle: everything a running campaign sends by, frozen at launch.

A sender composes from the bundle and the shard alone, so an edit of a template, a relay list or the campaign file
during a run changes nothing (invariant 9). The loader writes it once; whoever holds a lease of the campaign reads it.

```
offset  0       8         12          16              24
       | magic | version | crc32 u4  | body length u8 | body: one msgpack map        |
```

Invariants:

- the file is whole or absent (durable.py), and its checksum covers the body;
- a reader names the campaign it expects: a bundle of another campaign or instance is refused, never used;
- it holds names of relays, never their passwords.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped, unused-ignore]

from shm.files.durable import FileDamaged, FileMismatch, check_identity, replace_file

__all__ = ["Bundle", "read", "write"]

MAGIC = b"ECMBUNDL"
VERSION = 1
HEAD = struct.Struct("<8sIIQ")
assert HEAD.size == 24, "layout is read by other versions: raise VERSION instead"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one campaign was launched with.

    instance              32 hexadecimal digits
    campaign              its id, from 1
    name                  as the operator wrote it
    spec                  CampaignSpec.to_map(): plain maps, lists, texts and numbers
    relays                [[relay name, weight], ...]; one entry unless the campaign names a pool
    suppressed_position   the store's running number of suppression changes, noted before the snapshot read them;
                          a lease matches its shard against every change after it
    retry                 Retry.to_map() at launch
    fields                column names of the audience, the address column included
    email_field           which of them holds the address
    created_s             engine time, seconds
    """

    instance: str
    campaign: int
    name: str
    spec: dict[str, Any]
    relays: list[list[Any]]
    suppressed_position: int
    retry: dict[str, Any]
    fields: list[str]
    email_field: str
    created_s: float


def write(path: Path, bundle: Bundle) -> None:
    """Write the bundle durably under `path`. Raises OSError; then nothing stands there that did not before."""
    body = msgpack.packb(asdict(bundle))
    replace_file(path, [HEAD.pack(MAGIC, VERSION, zlib.crc32(body), len(body)), body])


def read(path: Path, *, instance: str, campaign: int) -> Bundle:
    """The bundle of this campaign.

    Raises FileMismatch naming the field (magic, version, instance, campaign), FileDamaged, OSError if there is none.
    """
    data = path.read_bytes()
    if len(data) < HEAD.size:
        raise FileDamaged(path, f"{len(data)} bytes cannot hold a bundle")
    magic, version, checksum, length = HEAD.unpack_from(data)
    check_identity(path, {"magic": MAGIC, "version": VERSION}, {"magic": magic, "version": version})
    body = memoryview(data)[HEAD.size :]
    if len(body) != length or zlib.crc32(body) != checksum:
        raise FileDamaged(path, "the checksum of the bundle does not match its content")
    content = msgpack.unpackb(body)
    check_identity(path, {"instance": instance, "campaign": campaign}, content)
    known = {field.name for field in fields(Bundle)}
    if set(content) != known:
        raise FileMismatch(path, "fields", sorted(known), sorted(content))
    return Bundle(**content)
