"""What an engine has for one iteration, and what is proposed for it."""

from __future__ import annotations

from dataclasses import dataclass

MANY = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What there is for one iteration."""

    tokens: int  # that one batch may compute
    free_blocks: int  # of the KV cache, that no request holds now
    requests: int = MANY  # that one batch may have
    kv_tokens: int = MANY  # that one batch may read, with what its requests share once for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one request gets of an iteration."""

    request_id: str
    tokens: int  # to compute: 1 where it decodes, a chunk where it prefills


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Of one iteration: preempt, then resume, then run. See the package for what it promises."""

    run: tuple[Share, ...] = ()
    preempt: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    soon: tuple[str, ...] = ()
    too_large: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether one more request is taken; if not, why, and when to ask again."""

    accepted: bool
    retry_after_seconds: float = 0.0
    reason: str = ""
