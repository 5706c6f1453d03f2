"""Suppressing while campaigns run: store first, then the log that senders read; and files of addresses."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker import addressfile
from broker import suppression as broker_suppression
from broker.addressfile import entry_of
from broker.contract.errors import EcmError
from broker.store import suppression as store_suppression
from shm.address import key, normalise
from shm.arena import ShmFull
from shm.live.suppressed import ADD, REMOVE, SuppressionReader
from tests.fixtures.parts import Parts, listening, parts


def with_parts(root: Path, body: Callable[[Parts], Coroutine[Any, Any, None]], oldest: int | None = None) -> None:
    """One life of a broker, its log rebuilt from `oldest` on."""

    async def main() -> None:
        async with parts(root) as made:
            await made.suppression.rebuild(oldest)
            await body(made)

    asyncio.run(main())


def seen(made: Parts, after: int = 0) -> list[tuple[int, bytes]]:
    """What a sender whose snapshot knew change `after` reads: (op, key) of each entry since."""
    reader = SuppressionReader(made.tables.arena)
    views = reader.since(reader.index_after(after))
    found = [(int(entry["op"]), entry["key"].tobytes()) for view in views for entry in view]
    reader.close()
    return found


async def done(made: Parts, path: Path, **options: Any) -> dict[str, Any]:
    return await made.jobs.result(await made.suppression.import_(str(path), **options))


def test_senders_see_a_change_when_the_answer_is_given(tmp_path: Path) -> None:
    """Additions and removals are in the log, in the store's order, by the keys that shards carry."""

    async def body(made: Parts) -> None:
        assert await made.suppression.add(["a@x.org", " B@X.org"]) == {"added": 2, "already": 0}
        assert await made.suppression.add(["b@x.org", "c@x.org"], "bounce") == {"added": 1, "already": 1}
        assert await made.suppression.remove(["a@x.org", "nobody@x.org"]) == {"removed": 1, "unknown": 1}
        assert seen(made) == [
            (ADD, key("a@x.org")),
            (ADD, key("b@x.org")),
            (ADD, key("c@x.org")),
            (REMOVE, key("a@x.org")),
        ]
        assert seen(made, 3) == [(REMOVE, key("a@x.org"))]

    with_parts(tmp_path, body)


def test_one_bad_address_refuses_the_whole_request(tmp_path: Path) -> None:
    """The error names it, and nobody was suppressed."""

    async def body(made: Parts) -> None:
        with pytest.raises(EcmError, match=r"`b at x\.org`") as caught:
            await made.suppression.add(["a@x.org", "b at x.org"])
        assert (caught.value.code, caught.value.field) == ("invalid_value", "addresses")
        assert made.log.count == 0

    with_parts(tmp_path, body)


def test_the_log_begins_where_the_oldest_snapshot_ended(tmp_path: Path) -> None:
    """After a start the log holds what is newer than the oldest unfinished snapshot, and goes on from there."""

    async def first(made: Parts) -> None:
        for n in range(5):
            await made.suppression.add([f"u{n}@x.org"])

    async def second(made: Parts) -> None:
        assert (made.log.count, made.log.first_position, made.log.position) == (2, 4, 5)
        await made.suppression.add(["new@x.org"])
        assert seen(made, 3) == [(ADD, key("u3@x.org")), (ADD, key("u4@x.org")), (ADD, key("new@x.org"))]

    async def third(made: Parts) -> None:
        assert (made.log.count, made.log.position) == (0, 6)
        await made.suppression.add(["newer@x.org"])
        assert seen(made, 6) == [(ADD, key("newer@x.org"))]

    with_parts(tmp_path, first)
    with_parts(tmp_path, second, oldest=3)
    with_parts(tmp_path, third)


def test_a_change_the_log_missed_is_appended_before_anything_newer(tmp_path: Path) -> None:
    """What was committed without reaching the log comes with the next change, in order and without a gap."""

    async def body(made: Parts) -> None:
        await made.suppression.add(["a@x.org"])
        await made.store_call(store_suppression.add, [entry_of("missed@x.org")], "manual", "test", 1.0)
        await made.suppression.add(["b@x.org"])
        assert [which for _, which in seen(made)] == [key("a@x.org"), key("missed@x.org"), key("b@x.org")]

    with_parts(tmp_path, body)


def test_full_shared_memory_is_told_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that the store has it and running campaigns not; when there is room again, nothing is missing."""

    async def body(made: Parts) -> None:
        def full(_entries: object) -> None:
            raise ShmFull("ecm-x.s1", 2 << 20)

        with monkeypatch.context() as patch:
            patch.setattr(type(made.log), "append", lambda _log, entries: full(entries))
            with pytest.raises(EcmError, match="running campaigns cannot be told") as caught:
                await made.suppression.add(["a@x.org"])
            assert caught.value.code == "shm_full"
        await made.suppression.add(["b@x.org"])
        assert [which for _, which in seen(made)] == [key("a@x.org"), key("b@x.org")]

    with_parts(tmp_path, body)


def test_a_file_is_imported_whatever_its_dialect(tmp_path: Path) -> None:
    """Header, quotes, further columns, blank lines and Windows line ends are read; bad lines are counted and placed."""
    path = tmp_path / "leavers.csv"
    path.write_bytes(
        b'\xef\xbb\xbfEmail;Name\r\n"a@x.org";"Ann, A."\r\n\r\nB@X.ORG,Bob\r\n'
        b"not an address\r\n  c@x.org  \r\n,nobody\r\na@x.org\nd@x\xc3\xbc.org\tD"
    )

    async def body(made: Parts) -> None:
        result = await done(made, path, reason="unsubscribe")
        assert {name: result[name] for name in ("rows", "added", "already", "invalid", "first_invalid_line")} == {
            "rows": 7,
            "added": 4,
            "already": 1,
            "invalid": 2,
            "first_invalid_line": 5,
        }
        wanted = {key(address) for address in ("a@x.org", "b@x.org", "c@x.org", "d@xü.org")}
        assert {which for _, which in seen(made)} == wanted
        assert {row.kind for row in store_suppression.listing(made.state.store_db)} == {"unsubscribe"}

    with_parts(tmp_path, body)


def test_a_file_longer_than_a_batch_arrives_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, batches and reads cut anywhere: every address is suppressed once, and a second import adds none."""
    monkeypatch.setattr(addressfile, "CHUNK_ROWS", 1000)
    monkeypatch.setattr(addressfile, "READ_BYTES", 777)
    monkeypatch.setattr(addressfile, "BATCH_ROWS", 300)
    path = tmp_path / "many.txt"
    path.write_text("".join(f"user{n % 5000}@example.com\n" for n in range(6000)))

    async def body(made: Parts) -> None:
        result = await done(made, path)
        assert (result["rows"], result["added"], result["already"], result["invalid"]) == (6000, 5000, 1000, 0)
        assert sorted(which for _, which in seen(made)) == sorted(key(f"user{n}@example.com") for n in range(5000))
        assert (await done(made, path))["added"] == 0

    with_parts(tmp_path, body)


def test_a_change_of_one_row_does_not_wait_for_an_import(tmp_path: Path) -> None:
    """An unsubscribe in the midst of a large import is answered long before its end, and both are complete."""
    path = tmp_path / "many.txt"
    path.write_text("".join(f"user{n}@example.com\n" for n in range(60_000)))

    async def body(made: Parts) -> None:
        job = await made.suppression.import_(str(path))
        ended = asyncio.create_task(made.jobs.result(job))
        while not made.log.count:
            await asyncio.sleep(0)
        answer = await made.suppression.add(["late@x.org"])
        assert answer == {"added": 1, "already": 0}
        assert not ended.done()
        assert (await ended)["added"] == 60_000
        ops = seen(made)
        assert len(ops) == 60_001
        assert ops.index((ADD, key("late@x.org"))) < 60_000

    with_parts(tmp_path, body)


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (None, "file_missing", None),
        (b"", "file_empty", None),
        (b"a@x.org\nb@x.org\0\n", "file_binary", 2),
        (b"a@x.org\nm\xfcller@x.org\n", "not_utf8", 2),
        (b"x" * 100_000, "file_binary", None),
    ],
)
def test_a_file_that_is_none_is_said_with_its_line(
    tmp_path: Path, content: bytes | None, code: str, line: int | None
) -> None:
    """Missing, empty, binary and badly encoded files are errors with file and line."""
    path = tmp_path / "leavers.txt"
    if content is not None:
        path.write_bytes(content)

    async def body(made: Parts) -> None:
        with pytest.raises(EcmError) as caught:
            await done(made, path)
        assert (caught.value.code, caught.value.file, caught.value.line) == (code, str(path), line)

    with_parts(tmp_path, body)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    """Only a regular file can be imported."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    async def body(made: Parts) -> None:
        with pytest.raises(EcmError) as caught:
            await made.suppression.import_(str(path))
        assert caught.value.code == "file_unreadable"

    with_parts(tmp_path, body)


def test_who_was_suppressed_is_told(tmp_path: Path) -> None:
    """One event for a request, with the addresses; none if nothing changed."""

    async def body(made: Parts) -> None:
        async with listening(made, "recipient.") as listener:
            await made.suppression.add(["A@x.org"], "complaint", "loop")
            await made.suppression.add(["a@x.org"])
            await made.suppression.remove(["a@x.org"])
            heard = [await listener.next() for _ in range(2)]
        assert [(message["event"], message["seq"]) for message in heard] == [
            ("recipient.suppressed", 1),
            ("recipient.unsuppressed", 2),
        ]
        assert heard[0]["data"] == {"added": 1, "reason": "complaint", "source": "loop", "addresses": ["a@x.org"]}

    with_parts(tmp_path, body)


@pytest.mark.parametrize("text", ["A@x.org", " ä@Exämple.org ", '"a b"@x.org', "a@[192.0.2.1]", "x+y@x"])
def test_entries_have_the_key_that_shards_have(text: str) -> None:
    """The importer's shortcut gives the key of shm.address, the one definition of the same address."""
    entry = entry_of(text)
    assert entry is not None
    assert entry == (key(text), normalise(text))


@pytest.mark.parametrize(
    "text", ["", "a", "@x.org", "a@", "a@b@c", "a b@x.org", "a@x.org,b@x.org", "a\r@x.org", "<a@x>"]
)
def test_what_is_no_address_has_no_entry(text: str) -> None:
    """Nothing that could not be an address gets into the store."""
    assert entry_of(text) is None


def test_log_entries_hold_op_kind_and_key() -> None:
    """The store's columns become the arena's records word for word."""
    changes = store_suppression.Changes(
        5, np.array([1], np.int32), np.array([3], np.int32), np.array([[7, 9]], np.uint64)
    )
    (entry,) = broker_suppression._log_entries(changes)
    assert [entry[name].tolist() for name in ("scope", "op", "kind", "key")] == [0, 1, 3, [7, 9]]
