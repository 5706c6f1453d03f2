"""What replies are about: rules as data, each beside the real reply that prompted it.

Data and one function; no SMTP stage, no ledger state (that is `outcome`).

Invariants
- The first rule that matches decides. Every rule's own example matches it and no earlier rule (a test).
- Addresses are taken out of a reply before it is matched: what a recipient is called says nothing about the reply.
- A rule that blames us stands on a reply that names us, our address, our rate, our message or our credentials; when in
  doubt a reply has no rule, and its digits decide.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from actors.smtp.reply import Reply

__all__ = ["MEANING", "RULES", "About", "Rule", "rule_of"]


class About(StrEnum):
    """Whom or what a reply is about; the retry classes of `[retry.CLASS]` are among these words."""

    NONE = "none"  # nothing is wrong
    RECIPIENT = "recipient"  # no such mailbox, or it does not want us
    SENDER = "sender"  # we: credentials, address, reputation, message, quota
    GREYLISTING = "greylisting"  # come back in a few minutes
    THROTTLING = "throttling"  # too fast, or the server is too busy
    MAILBOX_FULL = "mailbox_full"
    STEP = "step"  # the ends have lost step: says nothing about anybody
    OTHER = "other"


MEANING: dict[About, str] = {
    About.RECIPIENT: "the recipient: no such mailbox, or it wants no mail",
    About.SENDER: "us: credentials, permission, reputation, message or quota; never charged to the recipient",
    About.GREYLISTING: "nobody: the server takes strangers at the second attempt",
    About.THROTTLING: "our speed, or a server with too much to do",
    About.MAILBOX_FULL: "the recipient's mailbox, for now",
    About.STEP: "the conversation: both ends count differently, so it says nothing about anybody",
    About.OTHER: "something no rule knows: its digits decide",
    About.NONE: "nothing: all is well",
}


class Rule(NamedTuple):
    """about: the class; pattern: searched in `550 5.1.1 text`, lower case; example: the reply that prompted it."""

    about: About
    pattern: re.Pattern[str]
    example: str


def _rules(about: About, *pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(about, re.compile(pattern), example) for pattern, example in pairs]


_STEP = _rules(
    About.STEP,
    (r"^5\d\d .*synchroni[sz]ation", "554 5.5.0 Error: SMTP protocol synchronization"),
    (r"^500 .*pipelining not supported", "500 5.5.1 Invalid command: Pipelining not supported"),
    (r"^50[02] .*command (not recogni[sz]ed|unrecogni[sz]ed)", "502 5.5.2 Error: command not recognized"),
    (r"^500 .*unrecogni[sz]ed command", "500 unrecognized command"),
)

_OUR_ADDRESS = _rules(  # before the recipient: "User unknown" may be said of ours, too
    About.SENDER,
    (r"\bsender address rejected\b", "550 5.1.0 <news@example.com>: Sender address rejected: User unknown"),
)

_RECIPIENT = _rules(
    About.RECIPIENT,
    (r"^5\d\d 5\.1\.[126]\b", "550 5.1.1 The email account that you tried to reach does not exist."),
    (r"^5\d\d 5\.2\.1\b(?!.*\bat a rate\b)", "550 5.2.1 The email account that you tried to reach is inactive."),
    (r"^5\d\d .*\b(user unknown|unknown user|no such (user|mailbox|recipient))\b", "550 No Such User Here"),
    (r"^5\d\d .*\brecipient ?not ?found\b", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found"),
    (r"^5\d\d 5\.4\.1 .*\brecipient address rejected\b", "550 5.4.1 Recipient address rejected: Access denied."),
    (r"^5\d\d .*\bmailbox (unavailable|not found)\b", "550 Requested action not taken: mailbox unavailable"),
    (r"\bdoesn't have a \S+ account\b", "554 delivery error: dd This user doesn't have a yahoo.com account"),
)

_MAILBOX_FULL = _rules(
    About.MAILBOX_FULL,
    (r"^\d+ [45]\.2\.2\b", "452 4.2.2 The recipient's inbox is out of storage space."),
    (r"\bmailbox (is )?full\b", "552 Mailbox full"),
    (r"\b(mailbox|account|user|recipient)\b.*\bover (its |the )?quota\b", "452 Mailbox over quota"),
    (r"\bquota exceeded \(mailbox", "552 Quota exceeded (mailbox for user is full)"),
)

_GREYLISTING = _rules(
    About.GREYLISTING,
    (r"^4\d\d .*gr[ae]y-?list", "450 4.2.0 <anna@example.com>: Recipient address rejected: Greylisted, see ..."),
    (r"^451 4\.7\.1 (please )?try again later$", "451 4.7.1 Try again later"),
)

_QUOTA = _rules(  # how much in all, as opposed to how fast
    About.SENDER,
    (r"\b(daily|hourly|monthly) (\w+ ){0,3}(quota|limit)", "454 Throttling failure: Daily message quota exceeded."),
    (r"\b(sending|message|relay) (quota|limits?)\b", "550 5.4.5 Sending quota exceeded"),
    (r"\bsending paused for this account\b", "554 Message rejected: Sending paused for this account."),
    (r"\bmaximum credits exceeded\b", "451 Authentication failed: Maximum credits exceeded"),
)

_THROTTLING = _rules(
    About.THROTTLING,
    (r"\bthrottl", "454 Throttling failure: Maximum sending rate exceeded."),
    (
        r"\b(unusual|high) rate\b",
        "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail.",
    ),
    (
        r"\b(unusual|unexpected|high) volume\b",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume",
    ),
    (
        r"\b(receiving mail at a rate|rate limit|rate exceeded)",
        "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages",
    ),
    (
        r"\breceiving mail too quickly\b",
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly.",
    ),
    (r"\bconnections? limit exceeded\b", "432 4.3.2 Concurrent connections limit exceeded."),
    (
        r"\btoo (many (connections|messages|recipients)|much mail|fast)\b",
        "421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1",
    ),
    (r"\b(server|service|system) (is )?(too )?busy\b", "451 4.7.500 Server busy. Please try again later."),
    (r"^\d+ 4\.3\.[12]\b", "452 4.3.1 Insufficient system storage"),
)

_CREDENTIALS = _rules(
    About.SENDER,
    (r"^53[0458] ", "535 5.7.8 Error: authentication failed: authentication failure"),
    (r"\b(not authenticated|authentication required)\b", "550 5.7.1 Client was not authenticated"),
    (r"\b(relay access denied|relaying denied)\b", "554 5.7.1 <anna@example.com>: Relay access denied"),
    (r"\b(unable to relay|relay not permitted)\b", "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"),
    (r"\bpermissions? to send as\b", "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
    (r"\bsendasdenied\b", "554 5.2.252 SendAsDenied; news@example.com not allowed to send as news@example.net"),
    (r"\bverified sender identity\b", "550 The from address does not match a verified Sender Identity."),
    (r"\btoo many login attempts\b", "454 4.7.0 Too many login attempts, please try again later."),
    (r"\baddress is not verified\b", "554 Message rejected: Email address is not verified."),
    (
        r"^\d+ [45]\.[17]\.8\b",
        "553 5.1.8 <news@example.com>... Domain of sender address news@example.com does not exist",
    ),
    (r"\bhelo command rejected\b", "450 4.7.1 <mail.example.com>: Helo command rejected: Host not found"),
)

_REPUTATION = _rules(
    About.SENDER,
    (
        r"^\d+ [45]\.7\.(2[0-79]|3[0-2]|4\d|515)\b",
        "550 5.7.26 This mail has been blocked because the sender is unauthenticated.",
    ),
    (r"\b(spf|dkim|dmarc)\b", "550 5.7.1 Unauthenticated email is not accepted due to the domain's DMARC policy"),
    (
        r"\b(ptr record|reverse dns|reverse hostname)\b",
        "450 4.7.1 Client host rejected: cannot find your reverse hostname",
    ),
    (
        r"\b(spamhaus|spamcop|barracuda|rbl|dnsbl|block ?list(ed)?|black ?list(ed)?)\b",
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
    ),
    (r"\bclient host\b.*\bblocked\b", "554 5.7.1 Client host [192.0.2.1] blocked by administrator"),
    (r"\bbanned send(ing ip|er)\b", "550 5.7.606 Access denied, banned sending IP [192.0.2.1]"),
    (
        r"\bwill be permanently deferred\b",
        "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.",
    ),
    (
        r"\bnot authorized to send email directly\b",
        "550 5.7.1 The IP you're using to send mail is not authorized to send email directly to our servers.",
    ),
    (r"\bdue to local policy\b", "554 5.7.1 [CS01] Message rejected due to local policy."),
    (
        r"\ba problem occurred\b.*\bask your postmaster\b",
        "554 IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de)",
    ),
    (r"\b(poor|low|bad) (ip |domain )?reputation\b", "550 5.7.1 Message rejected due to low domain reputation"),
)

_CONTENT = _rules(
    About.SENDER,
    (
        r"\b(spam|unsolicited|phishing|virus|malware)\b",
        "550 5.7.1 Our system has detected that this message is likely unsolicited mail.",
    ),
    (r"\b(policy reasons|security issue)\b", "554 5.7.9 Message not accepted for policy reasons"),
    (r"^5\d\d 5\.3\.4\b", "552 5.3.4 Message size exceeds fixed limit"),
    (r"\bmessage size limits?\b", "552 5.2.3 Your message exceeded Google's message size limits."),
)

RULES: tuple[Rule, ...] = (
    *_STEP,
    *_OUR_ADDRESS,
    *_RECIPIENT,
    *_MAILBOX_FULL,
    *_GREYLISTING,
    *_QUOTA,  # before throttling: a provider may call both by that name
    *_THROTTLING,  # before content: "an unusual rate of unsolicited mail" is about the rate
    *_CREDENTIALS,
    *_REPUTATION,
    *_CONTENT,
)

_ADDRESS_RE = re.compile(r"<[^<>\s]*>|[^\s<>:;,()\[\]]+@[^\s<>:;,()\[\]]+")


@lru_cache(maxsize=4096)
def rule_of(reply: Reply) -> Rule | None:
    """The rule a reply meets, or None. About 15 us for a text not met before; relays repeat themselves."""
    text = _ADDRESS_RE.sub("<>", str(reply)).lower()
    return next((rule for rule in RULES if rule.pattern.search(text)), None)
