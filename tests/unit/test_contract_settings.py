"""ecm.toml: what it means, and what is said of every mistake in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.contract import codec
from broker.contract.errors import EcmError
from broker.contract.problems import internal_keys
from broker.contract.settings import (
    Budget,
    EngineSettings,
    LedgerSettings,
    Rate,
    Relay,
    Retry,
    Settings,
    check_settings,
    load_settings,
)

RELAY = '[relay.default]\nhost = "smtp.example.com"\n'


def load(directory: Path, text: str) -> Settings:
    """The settings of a file with this text."""
    path = directory / "ecm.toml"
    path.write_text(text)
    return load_settings(path)


def texts(text: str) -> list[str]:
    """What is said of a settings file with this text."""
    settings, errors = check_settings(text, Path("ecm.toml"))
    assert (settings is None) == bool(errors)
    return [error.text() for error in errors]


def test_without_a_file_the_built_in_settings_have_no_relay() -> None:
    """The figures of the design are the defaults."""
    settings = load_settings(None)
    assert (settings.relays, settings.pools) == ({}, {})
    assert (settings.retry.first_s, settings.retry.max_s, settings.retry.give_up_s) == (300, 14400, 86400)
    assert (settings.retry.share, settings.budget.share, settings.ledger.sync_ms) == (0.25, 0.9, 50)
    assert (settings.engine.trace, settings.engine.user, settings.source) == (False, "", None)


def test_the_designs_file_means_what_it_says(tmp_path: Path) -> None:
    """Every key of the design's example is taken, and the password comes from its file."""
    (tmp_path / "pw").write_text("s3cret\n")
    settings = load(
        tmp_path,
        RELAY + 'port = 587\ntls = "required"\nusername = "me"\npassword_file = "pw"\nconnections = 20\n'
        "messages_per_connection = 0\nwindow = 16\nrate = { per_second = 0 }\nfrom_domains = []\n"
        "[pool.main]\ndefault = 3\n[retry]\nfirst_s = 300\nmax_s = 14400\ngive_up_s = 86400\nshare = 0.25\n"
        '[budget]\nshare = 0.90\n[ledger]\nsync_ms = 50\n[engine]\ntrace = false\nuser = ""\n',
    )
    relay = settings.relays["default"]
    assert (relay.name, relay.host, relay.port, relay.tls) == ("default", "smtp.example.com", 587, "required")
    assert (relay.username, relay.password, relay.connections, relay.window) == ("me", "s3cret", 20, 16)
    assert not relay.rate.limited
    assert settings.weights("main") == {"default": 3}
    assert settings.source == tmp_path / "ecm.toml"


@pytest.mark.parametrize(
    ("keys", "port", "tls"),
    [
        ("", 25, "opportunistic"),
        ("port = 465", 465, "implicit"),
        ('tls = "implicit"', 465, "implicit"),
        ('username = "me"\npassword_file = "pw"', 587, "required"),
        ('port = 465\ntls = "none"', 465, "none"),
        ("port = 2525", 2525, "opportunistic"),
    ],
)
def test_port_and_tls_follow_from_each_other(tmp_path: Path, keys: str, port: int, tls: str) -> None:
    """TLS is implicit on 465, required with a username, else opportunistic; what is written down wins."""
    (tmp_path / "pw").write_text("s3cret")
    relay = load(tmp_path, RELAY + keys).relays["default"]
    assert (relay.port, relay.tls) == (port, tls)


def test_secrets_show_neither_in_repr_nor_in_the_public_map(tmp_path: Path) -> None:
    """Only the map for senders holds the password."""
    (tmp_path / "pw").write_text("s3cret")
    settings = load(tmp_path, RELAY + 'username = "me"\npassword_file = "pw"\n[relay.open]\nhost = "h"')
    assert "s3cret" not in repr(settings)
    public = settings.to_public_map()
    assert "s3cret" not in str(public)
    assert [public["relays"][name]["password"] for name in ("default", "open")] == ["set", "not set"]
    assert settings.to_map()["relays"]["default"]["password"] == "s3cret"


def test_settings_travel_as_plain_maps(tmp_path: Path) -> None:
    """Settings, and each relay and retry alone, are the same after msgpack."""
    settings = load(tmp_path, RELAY + "timeouts = { connect = 1.5 }\n[retry]\nfirst_s = 2\n[pool.p]\ndefault = 1")
    assert Settings.from_map(codec.unpack(codec.pack(settings.to_map()))) == settings
    relay = settings.relays["default"]
    assert Relay.from_map(codec.unpack(codec.pack(relay.to_map()))) == relay
    assert Retry.from_map(codec.unpack(codec.pack(settings.retry.to_map()))) == settings.retry
    assert Settings(relays={"made": Relay(host="h")}).relays["made"].name == "made"


def test_timeouts_that_are_not_set_keep_their_defaults(tmp_path: Path) -> None:
    """One timeout can be changed alone."""
    timeouts = load(tmp_path, RELAY + "[relay.default.timeouts]\nconnect = 2").relays["default"].timeouts_s
    assert timeouts == {"connect": 2.0, "greeting": 60.0, "command": 120.0, "body": 300.0, "idle": 30.0}


def test_a_retry_time_that_is_set_beats_a_shipped_class_default(tmp_path: Path) -> None:
    """[retry] holds for every class, its sub-tables override it, and shipped times fill what nobody set."""
    assert Retry().times("mailbox_full") == (3600, 14400)
    assert Retry().times("other") == (300, 14400)
    retry = load(tmp_path, "[retry]\nfirst_s = 2\n[retry.greylisting]\nmax_s = 7").retry
    assert retry.times("mailbox_full") == (2, 14400)
    assert retry.times("greylisting") == (2, 7)
    assert retry.times("throttling") == (2, 14400)
    assert load(tmp_path, "[retry.mailbox_full]\nfirst_s = 20000").retry.times("mailbox_full") == (20000, 20000)


def test_from_domains_are_compared_in_a_labels(tmp_path: Path) -> None:
    """A relay takes mail from the domains it lists and from no other; none listed means any."""
    relay = load(tmp_path, RELAY + 'from_domains = ["Exämple.com"]').relays["default"]
    assert relay.from_domains == ["xn--exmple-cua.com"]
    assert relay.allows_from("news@XN--exmple-cua.com")
    assert relay.allows_from("news@exämple.com")
    assert not relay.allows_from("news@sub.xn--exmple-cua.com")
    assert Relay(host="h").allows_from("anybody@anywhere")


def test_a_campaigns_relay_is_a_relay_or_a_pool(tmp_path: Path) -> None:
    """A name nobody declared is answered with the nearest one, or with what there is."""
    settings = load(tmp_path, RELAY + "[pool.main]\ndefault = 3\n")
    assert settings.weights("default") == {"default": 1}
    for name, hint in (("mian", 'did you mean "main"?'), ("x", "known relays and pools: default, main")):
        with pytest.raises(EcmError) as caught:
            settings.weights(name)
        assert (caught.value.code, caught.value.hint) == ("unknown_relay", hint)
    with pytest.raises(EcmError) as caught:
        Settings().weights("default")
    assert caught.value.hint == "declare it in ecm.toml: [relay.default] with host and port"


def test_rate_defaults_of_a_campaign_apply_as_a_set() -> None:
    """No [rate]: the defaults. Setting a second or minute limit drops all of them; any other key joins them."""
    default = Rate.campaign_default()
    assert Rate.from_table(None) == Rate.from_table({}) == default
    assert (default.per_second, default.per_minute, default.burst, default.wait_ms, default.cooldown_ms) == (
        100,
        5000,
        200,
        1,
        1,
    )
    assert Rate.from_table({"per_second": 10}) == Rate(per_second=10)
    assert Rate.from_table({"per_minute": 10}) == Rate(per_minute=10)
    assert Rate.from_table({"per_hour": 10}) == default.model_copy(update={"per_hour": 10})


MISTAKES = [
    ("port = 99999", "3:8: `relay.default.port` must be a whole number from 1 to 65535: `99999`", None),
    ('port = "abc"', '3:8: `relay.default.port` must be a whole number from 1 to 65535: `"abc"`', None),
    (
        'port = "587"',
        '3:8: `relay.default.port` must be a whole number from 1 to 65535: `"587"`',
        "write it without quotes: 587",
    ),
    ("prt = 25", "3:1: unknown key: `relay.default.prt`", "did you mean `port`?"),
    ("name = 5", "3:1: unknown key: `relay.default.name`", "did you mean `username`?"),
    (
        'tls = "require"',
        ('3:7: `relay.default.tls` must be one of "none", "opportunistic", "required", "implicit": `"require"`'),
        'did you mean "required"?',
    ),
    (
        "rate = { per_second = -1 }",
        "3:23: `relay.default.rate.per_second` must be a number from 0 (no limit) to 1000000: `-1`",
        None,
    ),
    ("rate.per_secnd = 1", "3:1: unknown key: `relay.default.rate.per_secnd`", "did you mean `per_second`?"),
    (
        'from_domains = ["a@example.com"]',
        '3:16: `relay.default.from_domains` names no valid domain: `"a@example.com"`',
        'write the part after the @: "example.com"',
    ),
    (
        "timeouts.body = 0",
        "3:17: `relay.default.timeouts.body` must be a number of seconds above 0, at most 3600: `0`",
        None,
    ),
    (
        'source_address = "lo"',
        "3:18: `relay.default.source_address` must be an IP address of this machine",
        None,
    ),
    (
        "max_age_s = -1",
        "3:13: `relay.default.max_age_s` must be a number of seconds from 0 (no limit) to 86400: `-1`",
        None,
    ),
    ("timeouts.bdy = 1", "3:1: unknown key: `relay.default.timeouts.bdy`", "did you mean `body`?"),
    (
        'username = "me"',
        "3:1: `password_file` is missing in [relay.default], which has a username",
        'add password_file = "pw"',
    ),
    (
        'password = "x"',
        "3:1: unknown key: `relay.default.password`",
        'a password stands in a file of its own: password_file = "pw"',
    ),
    (
        "[pool.main]\ndefualt = 1",
        "4:1: pool `main` names a relay that is not declared: `defualt`",
        "did you mean `default`?",
    ),
    ("[pool.main]\ndefault = 0", "4:11: `pool.main.default` must be a whole number from 1 to 1000: `0`", None),
    ("[pool.main]", "3:1: an empty pool: `main`", "add relay = weight"),
    ("[pool.default]\ndefault = 1", "3:1: a relay and a pool have the same name: `default`", "rename one of them"),
    (
        '[relay."a b"]\nhost = "h"',
        '3:1: not a name for a relay: `"a b"`',
        "letters, digits, `.`, `_` and `-`, at most 64, a letter or digit first",
    ),
    ("[relay.two]\nport = 25", "3:1: `host` is missing in [relay.two]", 'add host = "smtp.example.com"'),
    ('[relay.two]\nhost = "h:25"', "4:8: `relay.two.host` holds a port", 'write host = "h" and port = 25'),
    ("[retry]\nfirst = 3", "4:1: unknown key: `retry.first`", "did you mean `first_s`?"),
    ("[retry.greylist]\nfirst_s = 3", "3:1: unknown key: `retry.greylist`", "did you mean `greylisting`?"),
    (
        "[retry.greylisting]\nfirst_s = 0",
        "4:11: `retry.greylisting.first_s` must be a whole number of seconds from 1 to 2592000: `0`",
        None,
    ),
    ("[retry]\nclasses = {}", "4:1: unknown key: `retry.classes`", "known keys: first_s, max_s, give_up_s, share"),
    ("[budget]\nshare = 1.5", "4:9: `budget.share` must be a share above 0, at most 1: `1.5`", None),
    ("[budget]\nshare = nan", "4:9: `budget.share` must be a share above 0, at most 1: `NaN`", None),
    (
        "[ledger]\nsync_ms = 0",
        "4:11: `ledger.sync_ms` must be a whole number of milliseconds from 1 to 10000: `0`",
        None,
    ),
    (
        '[engine]\ntrace = "true"',
        '4:9: `engine.trace` must be true or false: `"true"`',
        "write it without quotes: true",
    ),
    (
        '[engine]\nuser = "no-such-user"',
        '4:8: `engine.user` names no user of this machine: `"no-such-user"`',
        "make the user, or leave it out",
    ),
    ("[engin]", "3:1: unknown key: `engin`", "did you mean `engine`?"),
    ("[budget]\nretry = 5", "4:1: unknown key: `budget.retry`", "`retry` belongs before the first [table] of the file"),
]


@pytest.mark.parametrize(("addition", "message", "hint"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_each_mistake_is_one_line_with_place_and_hint(addition: str, message: str, hint: str | None) -> None:
    """What is wrong, where, and how to mend it: the whole text is pinned."""
    said = message if hint is None else f"{message}\nhint: {hint}"
    assert texts(RELAY + addition) == [f"error: ecm.toml:{said}"]


def test_all_mistakes_are_told_in_the_order_of_the_file_and_the_first_is_raised(tmp_path: Path) -> None:
    """`check_settings` gives a list, `load_settings` its head."""
    text = '[ledger]\nsync_ms = "x"\n[pool.p]\nq = 1\n[relay.default]\nhost = 5\nprot = 1\n'
    lines = [said.split(": ")[1] for said in texts(text)]
    assert lines == ["ecm.toml:2:11", "ecm.toml:4:1", "ecm.toml:6:8", "ecm.toml:7:1"]
    with pytest.raises(EcmError) as caught:
        load(tmp_path, text)
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "ecm.toml"), 2)


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (None, "file_missing", "no such file"),
        (b"", "file_empty", "an empty file"),
        (b"\n", "file_empty", "an empty file"),
        (b"one\ntwo\n", "invalid_value", "more than one line"),
        (b"\xff\xfe", "not_utf8", "not UTF-8 in line 1"),
        (b"x" * (2 << 20), "file_unreadable", "larger than"),
    ],
)
def test_a_password_file_must_hold_one_line(tmp_path: Path, content: bytes | None, code: str, said: str) -> None:
    """The error points at `password_file` and names the file, never its content."""
    if content is not None:
        (tmp_path / "pw").write_bytes(content)
    with pytest.raises(EcmError) as caught:
        load(tmp_path, RELAY + 'username = "me"\npassword_file = "pw"')
    error = caught.value
    assert (error.code, error.line, error.column, error.field) == (code, 4, 17, "relay.default.password_file")
    assert error.message.startswith(f"`relay.default.password_file`: {said}")
    assert error.message.endswith(str(tmp_path / "pw"))


def test_a_directory_as_password_file_is_unreadable(tmp_path: Path) -> None:
    """What exists and cannot be read says why."""
    with pytest.raises(EcmError, match="Is a directory"):
        load(tmp_path, RELAY + f'username = "me"\npassword_file = "{tmp_path}"')


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user who may not read the file")
def test_a_password_file_of_somebody_else_names_the_user_who_needs_it(tmp_path: Path) -> None:
    """A file that may not be read names the engine's user in the hint."""
    (tmp_path / "pw").write_text("x")
    (tmp_path / "pw").chmod(0o600)
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    os.seteuid(65534)
    try:
        _, errors = check_settings(RELAY + 'username = "me"\npassword_file = "pw"', tmp_path / "ecm.toml")
    finally:
        os.seteuid(0)
    assert [error.code for error in errors] == ["file_unreadable"]
    assert errors[0].hint is not None
    assert errors[0].hint.startswith("let user `")


def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that was asked for must be there, and be text."""
    with pytest.raises(EcmError) as caught:
        load_settings(tmp_path / "ecm.toml")
    assert (caught.value.code, caught.value.file) == ("file_missing", str(tmp_path / "ecm.toml"))
    (tmp_path / "ecm.toml").write_bytes(b"\x80")
    with pytest.raises(EcmError) as caught:
        load_settings(tmp_path / "ecm.toml")
    assert caught.value.code == "not_utf8"


def test_more_relays_than_the_arena_has_rows_are_refused() -> None:
    """The 65th relay is the mistake."""
    said = texts("".join(f'[relay.r{n}]\nhost = "h"\n' for n in range(65)))
    assert said == ["error: ecm.toml:129:1: more than 64 relays: 65"]


@pytest.mark.parametrize(
    ("model", "internal"),
    [
        (Settings, {"relays", "pools", "source"}),
        (Relay, {"name", "password", "timeouts_s"}),
        (Retry, {"classes"}),
        (Rate, set()),
        (Budget, set()),
        (LedgerSettings, set()),
        (EngineSettings, set()),
    ],
)
def test_every_key_people_write_says_what_it_must_be(model: type[Settings], internal: set[str]) -> None:
    """A field without a description is one of ours; any other would have an error message without meaning."""
    assert internal_keys(model) == internal
