"""The bundle: what goes in comes out, and another campaign's is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from shm.files import bundle
from shm.files.durable import FileDamaged, FileMismatch

INSTANCE = "ab" * 16
BUNDLE = bundle.Bundle(
    instance=INSTANCE,
    campaign=7,
    name="autumn-news",
    spec={"subject": "Hello {{ first_name }} ü", "rate": {"per_second": 100, "burst": None}, "weight": 1.5},
    relays=[["default", 3], ["other", 1]],
    suppressed_position=41,
    retry={"first_s": 300},
    fields=["email", "first_name"],
    email_field="email",
    created_s=1_700_000_000.25,
)


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field survives the file, nested maps and lists included."""
    bundle.write(tmp_path / "bundle", BUNDLE)
    assert bundle.read(tmp_path / "bundle", instance=INSTANCE, campaign=7) == BUNDLE


@pytest.mark.parametrize(
    ("field", "instance", "campaign"), [("campaign", INSTANCE, 8), ("instance", "cd" * 16, 7)], ids=str
)
def test_a_bundle_of_another_campaign_is_refused_by_name(
    tmp_path: Path, field: str, instance: str, campaign: int
) -> None:
    """A reader that expects something else gets the name of the field, never the content."""
    bundle.write(tmp_path / "bundle", BUNDLE)
    with pytest.raises(FileMismatch) as raised:
        bundle.read(tmp_path / "bundle", instance=instance, campaign=campaign)
    assert raised.value.field == field


def test_every_flipped_or_missing_byte_of_a_bundle_is_found(tmp_path: Path) -> None:
    """No single damaged byte and no cut tail gives a bundle that is used."""
    path = tmp_path / "bundle"
    bundle.write(path, replace(BUNDLE, spec={}))
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises((FileMismatch, FileDamaged)):
            bundle.read(path, instance=INSTANCE, campaign=7)
        path.write_bytes(data[:at])
        with pytest.raises(FileDamaged):
            bundle.read(path, instance=INSTANCE, campaign=7)
