"""What two programs of different releases agree on in their first words: a protocol, and features.

Covers client and daemon, aquactl and daemon, daemon and keeper. Does not cover the words
themselves: each pair has messages of its own, which carry what is decided here.

Rule 1. A protocol's number is raised when one side must know of something that the other can't
   ignore. A program speaks a range: its own release's number, and that of the release before.
Rule 2. Who speaks first names the oldest number it speaks as `protocol` and the newest as
   `newest_protocol`. Who answers takes the newest that both speak, says which, and refuses where
   there is none. (0.1.0 knows no ranges: it says 1, takes nothing but 1, and leaves the rest out.)
Rule 3. What may as well be left out is a feature. Each side names those that it knows, and uses
   only what the other has named too. A name that nobody knows means nothing.

History. 1: 0.1.0. 2: 0.2.0, which says a range and a refusal's reason.
"""

from __future__ import annotations

from dataclasses import dataclass

OBSERVER = "observer"  # of a client that comes to look or to set something, and borrows nothing
QUOTA_COUNTS = "quota-counts"  # of a daemon whose quotas are of leases and sessions, too
QUOTA_WEIGHTS = "quota-weights"  # of a daemon whose quotas have a weight and a priority, too
CALLS = "calls"  # of both, where calls of the API may come as frames of the presence link
LEASE_EXCHANGE = "lease-exchange"  # of a daemon that takes other leases for those it revoked
TAKE_BACK = "take-back"  # of a daemon that takes back what is lent where it leaves a GPU alone
PROBES = "probes"  # of a keeper that measures links
# What CALLS is about: all that a server calls, so that it needs no gRPC, whose threads a fork has to
# stop. The rest is called by people and their tools.
FRAMED_METHODS = frozenset(
    {"Acquire", "Release", "Acknowledge", "Exchange", "ReserveHost", "Offer", "Reclaim", "GetState"}
)
DAEMON_FEATURES = (OBSERVER, QUOTA_COUNTS, QUOTA_WEIGHTS, CALLS, LEASE_EXCHANGE, TAKE_BACK)
CLIENT_FEATURES = (CALLS,)  # of the client library
KEEPER_FEATURES = (PROBES,)


@dataclass(frozen=True, slots=True)
class Protocols:
    """The numbers that a program speaks, from *oldest* to *newest*."""

    oldest: int
    newest: int

    @classmethod
    def said(cls, protocol: int, newest_protocol: int) -> Protocols:
        """What a first word says; without a newest number, the one that is there."""
        return cls(protocol, max(protocol, newest_protocol))

    def __str__(self) -> str:
        return str(self.oldest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SPOKEN = Protocols(oldest=1, newest=2)


class NoCommonProtocol(Exception):
    """The two are more than one release apart. The message names both, and whom to upgrade."""


def agreed_protocol(theirs: Protocols, *, they: str, we: str, ours: Protocols = SPOKEN) -> int:
    """The newest number that both speak; *they* and *we* are names for people.

    Raises:
        NoCommonProtocol: there is none.
    """
    protocol = min(ours.newest, theirs.newest)
    if protocol >= max(ours.oldest, theirs.oldest) and protocol > 0:
        return protocol
    older, other = (they, we) if theirs.newest < ours.oldest else (we, they)
    msg = (
        f"{they} speaks protocol {theirs}, {we} {ours}: upgrade {older} to a release that is at "
        f"most one apart from that of {other}"
    )
    raise NoCommonProtocol(msg)
