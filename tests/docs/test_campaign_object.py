"""What docs/protocol.md says of the campaign object is what the engine answers."""

import json
import re
from pathlib import Path

from broker.account import account_of
from tests.fixtures.campaigns_running import campaign_of, counts

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_page_shows_every_key_of_the_campaign_object_and_no_other() -> None:
    """The object in the page has the keys of a real one, in its order."""
    section = PAGE.read_text(encoding="utf-8").split("## The campaign object", 1)[1]
    shown = re.search(r"```\n(\{.*?\})\n```", section, re.DOTALL)
    assert shown is not None
    page = json.loads(re.sub(r"(?<=[:,{ ])T(?=[,}])", "null", shown[1]))
    campaign = campaign_of(shards={1: counts(pending=1)})
    real = account_of(campaign, campaign.settled, 0.0, None)
    assert set(page) == set(real)
