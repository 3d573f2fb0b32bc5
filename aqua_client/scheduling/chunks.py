"""How a batch's tokens are given out: decodes first, then the prefills with least progress."""

from __future__ import annotations

from collections.abc import Sequence

from aqua_client.scheduling.plans import Share
from aqua_client.scheduling.requests import Request


def shares(running: Sequence[Request], tokens: int) -> tuple[Share, ...]:
    """Of *tokens*, one to each that decodes, in the order given; what is left goes in chunks."""
    decoding = [one for one in running if not one.is_prefilling][:tokens]
    given = [Share(request_id=one.request_id, tokens=1) for one in decoding]
    left = tokens - len(given)
    prefilling = (one for one in running if one.is_prefilling)
    for request in sorted(prefilling, key=_progress):
        chunk = min(left, request.missing_tokens)
        if chunk < 1:
            break
        given.append(Share(request_id=request.request_id, tokens=chunk))
        left -= chunk
    return tuple(given)


def _progress(request: Request) -> tuple[int, bool, int]:
    return (request.kv_tokens, request.has_had_slice, request.number)
