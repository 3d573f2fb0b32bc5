"""Completely fair scheduling of an engine's requests, as a policy: who computes how many tokens.

    scheduler = FairScheduler(FairSettings(block_tokens=16))
    admission = scheduler.admit(now, prompt_tokens=900)      # refused: 429, with retry-after
    scheduler.add("chat-1", prompt_tokens=900, now=now)
    while scheduler.requests:                                # once an iteration:
        plan = scheduler.plan(now, Room(tokens=2048, free_blocks=cache.free_blocks), swap=swap)
        for name in plan.preempt:                            # 1. their blocks are needed now
            park(name)
            scheduler.preempted(name)                        #    or kept_tokens=0: recompute
        for name in plan.resume:                             # 2. parked ones come back, to run
            fetch(name)
        for share in plan.run:                               # 3. one batch: decodes, then prefills
            batch.append(share.request_id, share.tokens)
            scheduler.ran(share.request_id, share.tokens)
        ...                                                  # 4. whoever has ended:
        scheduler.remove(name)

Pure: no torch, no clock, no input or output; `now` is in seconds of any clock that only goes
forward, tokens and blocks are whole numbers. One thread at a time.

What a plan promises, if it is carried out in this order:

- its blocks fit: all that is in `run` fits into `free_blocks` and what `preempt` gives back;
- nobody is preempted within the part of its slice that it is sure of (where blocks vanish, as few as
  must be), and no more are preempted than those who run need;
- all of `resume` is in `run`; who is neither in `run` nor in `preempt` stays as it is;
- decodes come before prefills, the tokens are `Room.tokens` at most, and what they read is
  `Room.kv_tokens` at most;
- `soon` are the parked ones who come next, in order: worth a prefetch;
- `too_large` would not fit if they had the whole cache: refuse or end them.

A plan is a proposal. Only what is told counts: `ran`, `preempted`, and where an engine's cache has
more or fewer of a request's tokens than those say (a shared prefix, a fork, a lost lease) `holds`
and `resides`.

Words. A request's *known* tokens are its prompt and what it has generated; of them `kv_tokens` are
in the cache, here or parked. While more than one is missing it *prefills*, else it *decodes*, one
token an iteration. *Virtual run time* is what it has been given, in tokens by its weight. A *slice*
is how many iterations with a new token it has once it has been let in; of the first
`FairSettings.slice_iterations` of them it is sure, a newcomer in a rush of `rush_slice_iterations`.
"""

from aqua_client.scheduling.fair import FairScheduler
from aqua_client.scheduling.plans import Admission, Plan, Room, Share
from aqua_client.scheduling.settings import FairSettings, Order
from aqua_client.scheduling.swaps import Swap

__all__ = [
    "Admission",
    "FairScheduler",
    "FairSettings",
    "Order",
    "Plan",
    "Room",
    "Share",
    "Swap",
]
