"""How a batch's tokens are given out: decodes first, then prompts in chunks."""

from __future__ import annotations

from collections.abc import Sequence

from aqua_client.scheduling.plans import Share
from aqua_client.scheduling.requests import Request


def shares(running: Sequence[Request], tokens: int, *, newcomer_share: float) -> tuple[Share, ...]:
    """One token to each that decodes, in the order given; what is left goes to prefills.

    Those with the least progress are first, so that a long prompt holds up nobody. But what
    *newcomer_share* leaves of it is for the oldest, so that short ones do not hold it up for ever.
    """
    decoding = [one for one in running if not one.is_prefilling][:tokens]
    given = [Share(request_id=one.request_id, tokens=1) for one in decoding]
    prefilling = sorted((one for one in running if one.is_prefilling), key=_progress)
    left = tokens - len(given)
    if not prefilling or not left:
        return tuple(given)
    oldest = min(prefilling, key=lambda one: one.number)
    kept = min(oldest.missing_tokens, left - int(newcomer_share * left))
    left -= kept
    for request in prefilling:
        before = kept if request is oldest else 0
        chunk = min(left, request.missing_tokens - before)
        left -= chunk
        if before + chunk:
            given.append(Share(request_id=request.request_id, tokens=before + chunk))
    return tuple(given)


def _progress(request: Request) -> tuple[int, bool, int]:
    return (request.kv_tokens, request.has_had_slice, request.number)
