"""Tells when a GPU begins to be in trouble, when it is in another, and when it is well again."""

from __future__ import annotations

from aqua_daemon.core.accounts import GpuAccount
from aqua_daemon.core.instructions import NoteTrouble
from aqua_daemon.core.turn import Turn


def tell(turn: Turn, account: GpuAccount) -> None:
    """Note what has changed since it was told last. Seconds that pass are no change."""
    trouble, told = account.no_grants_because, account.told_trouble
    if trouble == told:
        return
    account.told_trouble = trouble
    if _without_figures(trouble) != _without_figures(told):
        turn.emit(NoteTrouble(gpu=account.gpu, trouble=trouble))


def _without_figures(words: str) -> str:
    return "".join(letter for letter in words if not letter.isdigit())
