"""The calls of the API: bytes of a session's request in, bytes of its reply out, or a refusal.

Covers what each call asks of the service and of the keepers, and what one caller may ask. Does not
cover how a call came (grpc_servicer, framed_calls), what messages hold (wire), nor what is decided
(core).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from aqua_daemon import __version__
from aqua_daemon.adapters.call_limits import CallGate, CallLimits
from aqua_daemon.adapters.happenings import Happenings
from aqua_daemon.adapters.link_file import LinkFile
from aqua_daemon.adapters.presence import PresenceServer
from aqua_daemon.adapters.reply import Reply, memory_of
from aqua_daemon.adapters.settings_file import SettingsFile
from aqua_daemon.adapters.statuses import TooLarge, TooLate
from aqua_daemon.adapters.visibility import happenings_for, visible_to
from aqua_daemon.adapters.wire import replies, requests
from aqua_daemon.core.errors import (
    BrokerBug,
    BrokerError,
    InvalidRequest,
    StaleRequest,
    UnknownSession,
)
from aqua_daemon.core.instructions import (
    Answer,
    AnswerDrain,
    AnswerExchange,
    AnswerGranted,
    AnswerHostRoom,
    AnswerLinkProbe,
    AnswerOffer,
    AnswerQuiesce,
    AnswerQuota,
    AnswerReclaim,
    AnswerReturned,
    AnswerUndrain,
)
from aqua_daemon.core.limits import QuotaOutcome
from aqua_daemon.core.model import BrokerSettings, LeaseId, Session, SessionId
from aqua_daemon.core.node_snapshot import NodeSnapshot
from aqua_daemon.core.sizes import LONGEST_REVOKE_SECONDS, REVOKE_GRACE_SECONDS
from aqua_daemon.ports import Clock, Keepers
from aqua_daemon.service import BrokerService, Request

LARGEST_REQUEST_BYTES = 2**20  # 10,000 lease ids are 0.35 MiB
_LONGEST_WAIT_SECONDS = 5.0  # past it a keeper is stuck; the caller may ask again with the same id
_TICK_SLACK_SECONDS = 1.0  # an answer at a deadline comes with the tick after it
_STATUS_LINES = 50  # of the node: two screens of `status`

Call = Callable[[SessionId, bytes, float], "Awaitable[bytes | Reply]"]
CallAtOnce = Callable[[SessionId, bytes], bytes]
_AnswerT = TypeVar("_AnswerT")

logger = logging.getLogger("aqua.api")


class BrokerCalls:
    """The calls of aqua.broker.v1.Broker, by whatever way they come."""

    def __init__(
        self,
        *,
        service: BrokerService,
        presence: PresenceServer,
        keepers: Keepers,
        settings: BrokerSettings,
        happenings: Happenings,
        settings_file: SettingsFile,
        link_file: LinkFile,
        clock: Clock,
        limits: CallLimits | None = None,
    ) -> None:
        """*happenings* are the journal's, with the times of *clock*."""
        self._service = service
        self._presence = presence
        self._keepers = keepers
        self._settings = settings
        self._happenings = happenings
        self._settings_file = settings_file
        self._link_file = link_file
        self._limits = limits or CallLimits()
        self._gate = CallGate(self._limits, clock=clock)
        self._clock = clock
        self._started_at = clock()
        self._calls: dict[str, Call] = {
            "Acquire": self._acquire,
            "Reclaim": self._reclaim,
            "SetQuota": self._set_quota,
            "Drain": self._drain,
            "Undrain": self._undrain,
            "ProbeLinks": self._probe_links,
        }
        # What the broker answers in the step that applies it, and what only looks.
        self._calls_at_once: dict[str, CallAtOnce] = {
            "Release": self._release,
            "Acknowledge": self._acknowledge,
            "Exchange": self._exchange,
            "ReserveHost": self._reserve_host,
            "Offer": self._offer,
            "GetState": self._get_state,
            "GetEvents": self._get_events,
            "Quiesce": self._quiesce,
            "GetQuotas": self._get_quotas,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names, as the service has them."""
        return (*self._calls, *self._calls_at_once)

    def reply_at_once(self, method: str, session_id: SessionId, payload: bytes) -> Reply | None:
        """The reply to a session's request, if none has to wait for it; None: ask for it by `reply`.

        Raises:
            BrokerError: whatever came in between, also faults of ours.
        """
        call = self._calls_at_once.get(method)
        if call is None:
            return None
        try:
            with self._entered(session_id):
                _check_size(payload)
                return Reply(payload=call(session_id, payload))
        except BrokerError:
            raise
        except Exception as error:  # one bad call must not go unanswered
            raise _fault(error) from error

    async def reply(
        self, method: str, session_id: SessionId, payload: bytes, *, wait_seconds: float | None
    ) -> Reply:
        """The reply to a session's request, to be sent at once; *wait_seconds* is what the caller has, None: enough.

        Raises:
            BrokerError: whatever came in between, also time and faults of ours.
        """
        at_once = self.reply_at_once(method, session_id, payload)
        if at_once is not None:
            return at_once
        if wait_seconds is None or wait_seconds > _LONGEST_WAIT_SECONDS:
            wait_seconds = _LONGEST_WAIT_SECONDS
        try:
            with self._entered(session_id):
                _check_size(payload)
                reply = await self._calls[method](session_id, payload, wait_seconds)
                return reply if isinstance(reply, Reply) else Reply(payload=reply)
        except BrokerError:
            raise
        except TimeoutError as error:
            msg = (
                "no answer in time; the request goes on: ask again with the same request_id "
                "to get its answer"
            )
            raise TooLate(msg) from error
        except Exception as error:  # as above
            raise _fault(error) from error

    def _entered(self, session_id: SessionId) -> AbstractContextManager[None]:
        pid, uid = self._presence.caller_of(session_id)
        return self._gate.entered(pid=pid, uid=uid)

    async def _ask(self, event: Request, kind: type[_AnswerT], wait_seconds: float) -> _AnswerT:
        return _answer_of(await self._service.request(event, timeout_seconds=wait_seconds), kind)

    def _ask_now(self, event: Request, kind: type[_AnswerT]) -> _AnswerT:
        return _answer_of(self._service.answer_now(event), kind)

    async def _acquire(self, session_id: SessionId, payload: bytes, wait_seconds: float) -> Reply:
        event = requests.lease_requested(
            payload,
            session_id=session_id,
            lease_id=LeaseId(secrets.token_hex(16)),
            settings=self._settings,
        )
        answer = await self._ask(event, AnswerGranted, wait_seconds)
        lease = answer.lease
        handle = self._keepers.handle(lease.lease_id)
        if handle is None:
            msg = (
                f"the handle of lease {lease.lease_id} was handed over before and is not kept: "
                "acquire another lease with a new request_id; this one goes back by itself"
            )
            raise StaleRequest(msg)
        pid, _uid = self._presence.caller_of(session_id)
        return Reply(
            payload=replies.acquired(lease, handle, pid=pid, now=self._clock()),
            slab=memory_of(lease, handle),
        )

    def _release(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.leases_released(payload, session_id=session_id)
        return replies.returned(self._ask_now(event, AnswerReturned))

    def _acknowledge(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.revoke_acknowledged(payload, session_id=session_id)
        return replies.returned(self._ask_now(event, AnswerReturned))

    def _exchange(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.exchange_offered(payload, session_id=session_id)
        return replies.exchanged(self._ask_now(event, AnswerExchange))

    def _reserve_host(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.host_room_requested(payload, session_id=session_id)
        return replies.host_reserved(self._ask_now(event, AnswerHostRoom))

    def _offer(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.offer_made(payload, session_id=session_id)
        return replies.offered(self._ask_now(event, AnswerOffer))

    async def _reclaim(self, session_id: SessionId, payload: bytes, _wait: float) -> bytes:
        # gRPC cancels at the caller's own deadline; the broker answers at that of the reclaim.
        event = requests.reclaim_requested(payload, session_id=session_id)
        deadline_seconds = event.deadline_seconds or LONGEST_REVOKE_SECONDS
        timeout_seconds = deadline_seconds + REVOKE_GRACE_SECONDS + _TICK_SLACK_SECONDS
        return replies.reclaimed(await self._ask(event, AnswerReclaim, timeout_seconds))

    def _get_state(self, session_id: SessionId, payload: bytes) -> bytes:
        gpu = requests.gpu_looked_at(payload)
        snapshot = self._service.snapshot()
        if gpu is not None:
            return replies.state_of_gpu(snapshot, gpu)
        viewer = _viewer(session_id, snapshot)
        recent = self._happenings.after(self._happenings.last_number - _STATUS_LINES)
        return replies.state(
            visible_to(viewer, snapshot),
            session_count=len(snapshot.sessions),
            client_versions=self._presence.roll.versions(),
            version=__version__,
            uptime_seconds=self._clock() - self._started_at,
            happenings=happenings_for(viewer, recent),
        )

    def _get_events(self, session_id: SessionId, payload: bytes) -> bytes:
        happenings = self._happenings
        after = requests.events_asked(payload, epoch=happenings.epoch)
        viewer = _viewer(session_id, self._service.snapshot())
        return replies.events(
            happenings_for(viewer, happenings.after(after)),
            epoch=happenings.epoch,
            cursor=happenings.last_number,
            is_partial=happenings.has_forgotten(after),
            now=self._clock(),
        )

    def _quiesce(self, session_id: SessionId, payload: bytes) -> bytes:
        event = requests.quiesce_requested(payload, session_id=session_id)
        return replies.quiesced(self._ask_now(event, AnswerQuiesce))

    def _get_quotas(self, session_id: SessionId, payload: bytes) -> bytes:
        requests.check_get_quotas(payload)
        snapshot = self._service.snapshot()
        presence = self._presence.limits
        return replies.quotas(
            visible_to(_viewer(session_id, snapshot), snapshot).quotas,
            self._limits,
            connections_per_uid=presence.connections_per_uid,
            sessions_per_process=presence.sessions_per_process,
        )

    async def _set_quota(self, session_id: SessionId, payload: bytes, wait_seconds: float) -> bytes:
        event = requests.quota_set(payload, session_id=session_id)
        answer = await self._ask(event, AnswerQuota, wait_seconds)
        outcome = answer.outcome
        if outcome in {QuotaOutcome.APPLIED, QuotaOutcome.DEFERRED}:
            await self._settings_file.keep(self._service.snapshot)
            outcome = outcome if requests.knows_deferred(payload) else QuotaOutcome.APPLIED
        quotas = self._service.snapshot().quotas
        return replies.quota_set(outcome, next(one for one in quotas if one.tenant == event.tenant))

    async def _drain(self, session_id: SessionId, payload: bytes, wait_seconds: float) -> bytes:
        event = requests.drain_requested(payload, session_id=session_id)
        answer = await self._ask(event, AnswerDrain, wait_seconds)
        if not event.is_dry_run:
            await self._settings_file.keep(self._service.snapshot)
        return replies.drained(answer)

    async def _undrain(self, session_id: SessionId, payload: bytes, wait_seconds: float) -> bytes:
        event = requests.undrain_requested(payload, session_id=session_id)
        answer = await self._ask(event, AnswerUndrain, wait_seconds)
        await self._settings_file.keep(self._service.snapshot)
        return replies.undrained(answer)

    async def _probe_links(
        self, session_id: SessionId, payload: bytes, wait_seconds: float
    ) -> bytes:
        event = requests.link_probe_requested(payload, session_id=session_id)
        answer = await self._ask(event, AnswerLinkProbe, wait_seconds)
        if any(one.samples for one in answer.outcomes):
            await self._link_file.keep(self._service.snapshot)
        return replies.links_probed(answer)


def _answer_of(answer: Answer, kind: type[_AnswerT]) -> _AnswerT:
    if not isinstance(answer, kind):
        msg = (
            f"the request_id was used for another call, which was answered by "
            f"{type(answer).__name__}: use a new id for each call"
        )
        raise InvalidRequest(msg)
    return answer


def _fault(error: Exception) -> BrokerBug:
    logger.error("a call failed", exc_info=error)
    return BrokerBug(f"the daemon failed ({error!r}); see its log")


def _check_size(payload: bytes) -> None:
    if len(payload) > LARGEST_REQUEST_BYTES:
        msg = (
            f"the request has {len(payload)} bytes, over the limit of {LARGEST_REQUEST_BYTES}: "
            "name fewer leases in one call"
        )
        raise TooLarge(msg)


def _viewer(session_id: SessionId, snapshot: NodeSnapshot) -> Session:
    viewer = next((one for one in snapshot.sessions if one.session_id == session_id), None)
    if viewer is None:
        raise UnknownSession("the session has ended: connect anew")
    return viewer
