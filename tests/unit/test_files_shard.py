"""The shard: recipients in, the same recipients out, and nothing of a file that is another or damaged."""

from pathlib import Path

import msgpack
import numpy as np
import pytest

from shm.files.durable import FileDamaged, FileMismatch
from shm.files.shard import Shard, ShardWriter

INSTANCE = "ab" * 16


def key(number: int) -> bytes:
    return bytes(range(8)) + number.to_bytes(8, "little")


def write(path: Path, rows: int, group: str = "other") -> list[dict[str, object]]:
    maps: list[dict[str, object]] = [
        {"email": f"u{n}@example.com", "name": "ü" * n, "_line": n + 2} for n in range(rows)
    ]
    writer = ShardWriter(path, instance=INSTANCE, campaign=7, shard=3, group=group)
    if rows:
        writer.add(key(0), msgpack.packb(maps[0]))
        writer.add_many(b"".join(map(key, range(1, rows))), [msgpack.packb(fields) for fields in maps[1:]])
    assert writer.rows == rows
    assert writer.finish() == rows
    return maps


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_a_shard_reads_back_as_it_was_written(tmp_path: Path, rows: int) -> None:
    """Every row has its map, its key and its number; the group stands in the header."""
    path = tmp_path / "shard-000003.shard"
    maps = write(path, rows, group="münchen.example")
    shard = Shard.open(path, instance=INSTANCE, campaign=7, shard=3)
    assert (shard.rows, shard.group, shard.keys.shape) == (rows, "münchen.example", (rows, 2))
    assert [shard.fields(row) for row in range(rows)] == maps
    assert [shard.record(row) for row in range(rows)] == [msgpack.packb(fields) for fields in maps]
    assert shard.keys.tobytes() == b"".join(map(key, range(rows)))
    shard.close()


def test_keys_outlive_their_shard(tmp_path: Path) -> None:
    """An array of keys somebody holds stays readable after close: the mapping goes with the last view."""
    path = tmp_path / "shard"
    write(path, 10)
    shard = Shard.open(path, instance=INSTANCE, campaign=7, shard=3)
    keys = shard.keys
    shard.close()
    assert np.array_equal(keys[:, 1], np.arange(10))


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("instance", {"instance": "cd" * 16, "campaign": 7, "shard": 3}),
        ("campaign", {"instance": INSTANCE, "campaign": 8, "shard": 3}),
        ("shard", {"instance": INSTANCE, "campaign": 7, "shard": 4}),
    ],
)
def test_another_shard_is_refused_by_the_name_of_the_field(
    tmp_path: Path, field: str, wanted: dict[str, object]
) -> None:
    """A shard of another instance, campaign or number says which of them differs."""
    write(tmp_path / "shard", 2)
    with pytest.raises(FileMismatch) as raised:
        Shard.open(tmp_path / "shard", **wanted)  # type: ignore[arg-type]
    assert raised.value.field == field


def test_every_flipped_byte_of_a_shard_is_found(tmp_path: Path) -> None:
    """No single damaged byte, in header, offsets, keys or records, goes unnoticed."""
    path = tmp_path / "shard"
    write(path, 2)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises((FileMismatch, FileDamaged)):
            Shard.open(path, instance=INSTANCE, campaign=7, shard=3)


def test_a_cut_shard_is_damaged_wherever_it_is_cut(tmp_path: Path) -> None:
    """A shard that ends early is refused, in its header and behind it."""
    path = tmp_path / "shard"
    write(path, 2)
    data = path.read_bytes()
    for size in (0, 100, 511, 512, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FileDamaged):
            Shard.open(path, instance=INSTANCE, campaign=7, shard=3)


def test_a_key_and_a_record_come_in_pairs(tmp_path: Path) -> None:
    """Keys and records that do not match in number are a fault of the caller."""
    writer = ShardWriter(tmp_path / "shard", instance=INSTANCE, campaign=7, shard=3)
    with pytest.raises(AssertionError):
        writer.add_many(key(1), [b"\x80", b"\x80"])
