"""How many calls one process, and one uid, may have under way and make in a second.

A limit of a uid is there because a user may start as many processes as it likes; that of a process
keeps one that has gone wild from using up its neighbours' share. What is over a limit is refused
at once, before its message is looked at, so that it costs the daemon next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from aqua_daemon.adapters.statuses import TooMany
from aqua_daemon.ports import Clock

_MANY_ACCOUNTS = 1024  # then those that are idle go


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """What one caller may ask of the API."""

    # A call that waits for a keeper is under way for as long: a server's threads all may.
    under_way_per_process: int = 128
    under_way_per_uid: int = 512
    # Above what one client alone can do on a fast machine, so that only floods meet it.
    per_second_per_process: float = 4000.0
    per_second_per_uid: float = 8000.0


@dataclass(slots=True, kw_only=True)
class _Account:
    """One process or uid that has called of late."""

    credits: float
    at: float
    under_way: int = 0


class _UnderWay:
    """Around one call. By hand: a generator in its place takes three times as long."""

    __slots__ = ("_process", "_user")

    def __init__(self, process: _Account, user: _Account) -> None:
        self._process = process
        self._user = user

    def __enter__(self) -> None:
        for account in (self._process, self._user):
            account.under_way += 1
            account.credits -= 1

    def __exit__(self, *_exception: object) -> None:
        for account in (self._process, self._user):
            account.under_way -= 1


class CallGate:
    """Lets calls in, or refuses them."""

    def __init__(self, limits: CallLimits, *, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[tuple[str, int], _Account] = {}

    def entered(self, *, pid: int, uid: int) -> _UnderWay:
        """To be around a call of a process.

        Raises:
            TooMany: it, or its user, has too many under way or makes them too fast.
        """
        limits, now = self._limits, self._clock()
        process = self._account("process", pid, limits.per_second_per_process, now)
        user = self._account("uid", uid, limits.per_second_per_uid, now)
        _check(process, f"process {pid}", limits.under_way_per_process)
        _check(user, f"uid {uid}", limits.under_way_per_uid)
        return _UnderWay(process, user)

    def forget_idle(self) -> None:
        """Drop what is known of callers that are back at full credit, so that it does not pile up."""
        now = self._clock()
        for key, account in list(self._accounts.items()):
            if not account.under_way and now - account.at > 1.0:
                del self._accounts[key]

    def __len__(self) -> int:
        """How many processes and users are remembered."""
        return len(self._accounts)

    def _account(self, kind: str, number: int, per_second: float, now: float) -> _Account:
        if len(self._accounts) >= _MANY_ACCOUNTS:
            self.forget_idle()
        account = self._accounts.get((kind, number))
        if account is None:
            account = self._accounts[kind, number] = _Account(credits=per_second, at=now)
        # A second's worth may come at once.
        account.credits = min(per_second, account.credits + (now - account.at) * per_second)
        account.at = now
        return account


def _check(account: _Account, who: str, most: int) -> None:
    if account.under_way >= most:
        msg = f"{who} has {account.under_way} calls under way, the most it may have: wait for some"
        raise TooMany(msg)
    if account.credits < 1:
        raise TooMany(f"{who} makes calls too fast: make fewer, and name more leases in each")
