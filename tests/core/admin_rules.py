"""What admins may do in any history: quiesce, drain and set quotas."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from aqua_daemon.core.events import (
    DrainRequested,
    PresenceEnded,
    QuiesceRequested,
    QuotaSet,
    UndrainRequested,
)
from aqua_daemon.core.model import GpuUuid, TenantName
from aqua_daemon.core.sizes import MIB
from tests.core.outside import GPUS, TENANTS, Outside


class AdminRules(Outside):
    """An admin is a session of its own, whose connection may close at once."""

    @rule(
        gpu=st.sampled_from(GPUS),
        seconds=st.sampled_from((0.0, 1.0, 30.0)),
        takes_back=st.booleans(),
        stays=st.booleans(),
    )
    def an_admin_quiesces(
        self,
        gpu: GpuUuid,
        seconds: float,
        takes_back: bool,  # noqa: FBT001 - drawn
        stays: bool,  # noqa: FBT001 - drawn
    ) -> None:
        admin = self.admin()
        self.handle(
            QuiesceRequested(
                session_id=admin,
                request_id=self.request_id(),
                gpu=gpu,
                seconds=seconds,
                takes_back=takes_back,
            )
        )
        if not stays:
            self.handle(PresenceEnded(session_id=admin))

    @rule(gpu=st.sampled_from(GPUS), seconds=st.sampled_from((None, 0.5, 10.0)))
    def an_admin_drains(self, gpu: GpuUuid, seconds: float | None) -> None:
        self.handle(
            DrainRequested(
                session_id=self.admin(),
                request_id=self.request_id(),
                gpus=(gpu,),
                deadline_seconds=seconds,
            )
        )

    @rule()
    def an_admin_undrains_all(self) -> None:
        request_id = self.request_id()
        self.handle(UndrainRequested(session_id=self.admin(), request_id=request_id, gpus=()))

    @rule(
        tenant=st.sampled_from(TENANTS),
        nbytes=st.sampled_from((None, 0, 16 * MIB, 64 * MIB, 200 * MIB)),
        revision=st.sampled_from((None, None, 1, 5)),
    )
    def an_admin_sets_a_quota(
        self, tenant: TenantName, nbytes: int | None, revision: int | None
    ) -> None:
        self.handle(
            QuotaSet(
                session_id=self.admin(),
                request_id=self.request_id(),
                tenant=tenant,
                nbytes=nbytes,
                revision=revision,
            )
        )
