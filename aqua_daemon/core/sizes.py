"""Sizes and terms that the broker's rules are made of, each with its reason."""

from __future__ import annotations

MIB = 2**20
GIB = 2**30

# What CUDA rounds device allocations to: anything smaller may share an allocation with neighbours.
SLAB_GRANULE_BYTES = 2 * MIB

# A tenth of a GPU keeps its owner's next allocation from failing; past 8 GiB that is plenty.
RESERVE_FRACTION = 0.1
RESERVE_CEILING_BYTES = 8 * GIB

# Grant only while this much of the reserve stays free, revoke below the reserve itself: the gap is
# what keeps an owner that breathes a little from causing revokes.
GRANT_RESERVE_FACTOR = 1.5

TERM_SECONDS = 10.0
RESTART_GRACE_SECONDS = 15.0  # a term, and half of one for holders that were busy
STANDARD_REVOKE_SECONDS = 2.0
CACHE_REVOKE_SECONDS = 0.25  # nothing has to be copied out
# What evacuations get of the way to host memory together: half of a PCIe 4 link that all share.
HOST_BYTES_PER_SECOND = 8.0 * GIB
DEAD_REVOKE_SECONDS = 0.5  # how long the sentinel may outlast the process before it is a heir's
LONGEST_REVOKE_SECONDS = 60.0  # what a producer may allow a borrower at most
SUSPECT_TERM_FRACTION = 2 / 3  # of a term unheard: one keepalive of three may be lost unnoticed
REVOKE_GRACE_SECONDS = 2.0  # invariant 6: by deadline + 2 s a revoke has ended one way or the other

# Of a revoke's time, so much may have passed when its holder offers other leases instead: these
# have to be evacuated in what is left.
EXCHANGE_FRACTION = 0.5

# Links are measured by copies of these sizes unless others are asked for: the small one shows what a
# copy costs before its first byte, the large one what a second carries.
SMALL_PROBE_BYTES = 64 * 1024
LARGE_PROBE_SLABS = 2  # of the smallest size
SMALLEST_PROBE_BYTES, LARGEST_PROBE_BYTES = 4096, 256 * MIB
MOST_PROBE_SIZES, MOST_PROBE_PAIRS = 8, 32  # of one request
PROBE_SECONDS = 4.0  # a copy takes milliseconds: a keeper that has not answered by then hangs
SLOW_FACTOR = 1.2  # a GPU or link that is so much slower than the node's median is avoided

# The longest start-up of an engine that measures its memory; nothing is lent there meanwhile.
LONGEST_QUIESCE_SECONDS = 600.0

# How long a want is remembered that is not repeated: a client asks again much sooner.
WANT_SECONDS = 10.0

# By choice no memory is taken back twice within this time.
REST_SECONDS = 10.0

# What a GPU's processes use counts as unchanged while it moves by less.
SAME_USE_BYTES = SLAB_GRANULE_BYTES

# Answers kept per session so that a repeated request id has one effect.
REMEMBERED_REQUESTS = 1024

# Ids of ended sessions and leases that are kept so that they can't come back; the oldest go first.
REMEMBERED_ENDED = 8192

# Twice what the largest nodes have room for in slabs of the smallest size that a busy client asks.
MOST_TENANT_LEASES = 16_384
# A process needs one, and each costs the daemon three descriptors until its process is gone.
MOST_TENANT_SESSIONS = 1024
# After a restart so many of a tenant are believed to be old ones, beside those that are let in.
MOST_RETURNING_SESSIONS = 4096
# An admin can look and set although its own tenant has all the sessions that it may have.
SPARE_ADMIN_SESSIONS = 8

# Settings of tenants that come and go are kept for ever; this many are a file of 1 MB.
MOST_QUOTAS = 10_000
# Wider ranges would only make shares of nothing.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 0.01, 100.0
MOST_PRIORITY = 1000  # above 0, and below

# The invariants that an event touches are checked after it. All of them are checked a few looks
# after each event, which costs less than the event, and half a millisecond of looks at each tick, a
# two-hundredth of its period; a strict broker checks all of them after every so many events.
LOOKS_PER_EVENT = 4
LOOKS_PER_TICK = 128
EVENTS_BETWEEN_FULL_CHECKS = 50


def reserve_bytes(total_bytes: int) -> int:
    """The part of a GPU that is never lent: min(10 %, 8 GiB), at least one granule."""
    tenth = int(total_bytes * RESERVE_FRACTION)
    return max(SLAB_GRANULE_BYTES, min(tenth, RESERVE_CEILING_BYTES))
