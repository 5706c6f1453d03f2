"""What a person at a terminal sees: the question, the bar, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fixtures.terminal import Terminal

if TYPE_CHECKING:  # pytest itself imports these, as plugins
    from tests.fixtures.engine import StartEngine
    from tests.fixtures.sink import StartSink

pytest_plugins = ["tests.fixtures.engine", "tests.fixtures.sink"]


def test_sending_asks_first_and_takes_no_for_an_answer(engine: StartEngine, sink: StartSink) -> None:
    """Audience, relay, From, limit and time are shown; a no sends nothing and keeps no draft."""
    relay = sink()
    running = engine(relay=relay.port)
    path = running.campaign("news", 300, rate="per_second = 100\nburst = 200")
    terminal = Terminal("ctl.main", ["send", str(path)], running.directory)
    terminal.until("send it? [y/N]: ")
    for line in (
        "campaign  news\n",
        "audience  300 of 300 rows\n",
        f"relay     default (127.0.0.1:{relay.port})\n",
        "from      News <news@example.com>\n",
        "limit     rate.per_second = 100\n",
        "time      at least 1.0 s\n",
        "warning: the unsubscribe url is not used in the message",
    ):
        assert line in terminal.text
    terminal.press("n\n")
    assert terminal.end() == 1
    assert "error: nothing was sent: you did not say yes\n" in terminal.text
    assert running.ctl("campaign", "list", "--json").ok().json() == {"campaigns": []}


def test_after_a_yes_a_bar_moves_and_the_account_remains(engine: StartEngine, sink: StartSink) -> None:
    """The bar shows sent, rate, time left and the limit that binds; a pause stands above it; the account is aligned."""
    running = engine(relay=sink().port)
    path = running.campaign("news", 400, rate="per_second = 100\nburst = 5")
    terminal = Terminal("ctl.main", ["send", str(path)], running.directory)
    terminal.until("send it? [y/N]: ")
    terminal.press("y\n")
    terminal.until("limit rate.per_second = 100")
    assert "news  running  sent " in terminal.text
    assert " of 400" in terminal.text
    assert "deferred 0  bounced 0" in terminal.text
    running.ctl("campaign", "pause", "news").ok()
    terminal.until("campaign news is paused: paused by the operator")
    running.ctl("campaign", "resume", "news").ok()
    assert terminal.end() == 0
    assert "campaign news is finished: 400 of 400 sent in " in terminal.text
    assert "sent        400\n" in terminal.text


def test_what_is_wrong_is_told_before_the_question(engine: StartEngine, sink: StartSink) -> None:
    """No question is asked about a campaign that could not be sent; with --yes none is asked at all."""
    running = engine(relay=sink().port)
    path = running.campaign("news", 2, text="{{ first_nam }}")
    terminal = Terminal("ctl.main", ["send", str(path)], running.directory)
    assert terminal.end() == 2
    assert "no field `first_nam`" in terminal.text
    assert "send it?" not in terminal.text
    (path.parent / "message.txt").write_text("Hello")
    terminal = Terminal("ctl.main", ["send", str(path), "--yes"], running.directory)
    assert terminal.end() == 0
    assert "send it?" not in terminal.text
    terminal = Terminal("ctl.main", ["send", str(path)], running.directory)
    assert terminal.end() == 2
    assert "send it?" not in terminal.text


def test_tables_are_drawn_on_a_terminal(engine: StartEngine) -> None:
    """`ctl stats` and `ctl doctor` draw a rule below their headings."""
    running = engine()
    for words in (["stats"], ["doctor"]):
        terminal = Terminal("ctl.main", words, running.directory)
        assert terminal.end() == 0
        assert "────" in terminal.text
