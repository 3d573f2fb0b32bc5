from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SafetyClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SAFETY_CLASS_UNSPECIFIED: _ClassVar[SafetyClass]
    SAFETY_CLASS_STORE: _ClassVar[SafetyClass]
    SAFETY_CLASS_CACHE: _ClassVar[SafetyClass]

class LeaseState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_STATE_UNSPECIFIED: _ClassVar[LeaseState]
    LEASE_STATE_ALLOCATING: _ClassVar[LeaseState]
    LEASE_STATE_LEASED: _ClassVar[LeaseState]
    LEASE_STATE_REVOKING: _ClassVar[LeaseState]
    LEASE_STATE_QUARANTINED: _ClassVar[LeaseState]
    LEASE_STATE_RETURNED: _ClassVar[LeaseState]
    LEASE_STATE_FREEING: _ClassVar[LeaseState]
    LEASE_STATE_LOST: _ClassVar[LeaseState]

class DescriptorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESCRIPTOR_KIND_UNSPECIFIED: _ClassVar[DescriptorKind]
    DESCRIPTOR_KIND_SHARED_MEMORY: _ClassVar[DescriptorKind]
    DESCRIPTOR_KIND_CUDA_VMM: _ClassVar[DescriptorKind]

class QuotaOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUOTA_OUTCOME_UNSPECIFIED: _ClassVar[QuotaOutcome]
    QUOTA_OUTCOME_APPLIED: _ClassVar[QuotaOutcome]
    QUOTA_OUTCOME_STALE: _ClassVar[QuotaOutcome]
    QUOTA_OUTCOME_CONFLICT: _ClassVar[QuotaOutcome]
    QUOTA_OUTCOME_DEFERRED: _ClassVar[QuotaOutcome]
SAFETY_CLASS_UNSPECIFIED: SafetyClass
SAFETY_CLASS_STORE: SafetyClass
SAFETY_CLASS_CACHE: SafetyClass
LEASE_STATE_UNSPECIFIED: LeaseState
LEASE_STATE_ALLOCATING: LeaseState
LEASE_STATE_LEASED: LeaseState
LEASE_STATE_REVOKING: LeaseState
LEASE_STATE_QUARANTINED: LeaseState
LEASE_STATE_RETURNED: LeaseState
LEASE_STATE_FREEING: LeaseState
LEASE_STATE_LOST: LeaseState
DESCRIPTOR_KIND_UNSPECIFIED: DescriptorKind
DESCRIPTOR_KIND_SHARED_MEMORY: DescriptorKind
DESCRIPTOR_KIND_CUDA_VMM: DescriptorKind
QUOTA_OUTCOME_UNSPECIFIED: QuotaOutcome
QUOTA_OUTCOME_APPLIED: QuotaOutcome
QUOTA_OUTCOME_STALE: QuotaOutcome
QUOTA_OUTCOME_CONFLICT: QuotaOutcome
QUOTA_OUTCOME_DEFERRED: QuotaOutcome

class HostRoom(_message.Message):
    __slots__ = ("revision", "nbytes")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    nbytes: int
    def __init__(self, revision: _Optional[int] = ..., nbytes: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("request_id", "nbytes", "safety_class", "wanted_bytes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SAFETY_CLASS_FIELD_NUMBER: _ClassVar[int]
    WANTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    nbytes: int
    safety_class: SafetyClass
    wanted_bytes: int
    def __init__(self, request_id: _Optional[str] = ..., nbytes: _Optional[int] = ..., safety_class: _Optional[_Union[SafetyClass, str]] = ..., wanted_bytes: _Optional[int] = ...) -> None: ...

class AcquireReply(_message.Message):
    __slots__ = ("lease", "handle")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    handle: Handle
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., handle: _Optional[_Union[Handle, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "session_id", "tenant", "lender_gpu", "borrower_gpu", "nbytes", "safety_class", "state", "used_bytes", "state_seconds", "reason", "pid")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LENDER_GPU_FIELD_NUMBER: _ClassVar[int]
    BORROWER_GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SAFETY_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    session_id: str
    tenant: str
    lender_gpu: str
    borrower_gpu: str
    nbytes: int
    safety_class: SafetyClass
    state: LeaseState
    used_bytes: int
    state_seconds: float
    reason: str
    pid: int
    def __init__(self, lease_id: _Optional[str] = ..., session_id: _Optional[str] = ..., tenant: _Optional[str] = ..., lender_gpu: _Optional[str] = ..., borrower_gpu: _Optional[str] = ..., nbytes: _Optional[int] = ..., safety_class: _Optional[_Union[SafetyClass, str]] = ..., state: _Optional[_Union[LeaseState, str]] = ..., used_bytes: _Optional[int] = ..., state_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class Handle(_message.Message):
    __slots__ = ("cuda_ipc", "descriptor", "keeper_pid", "canary")
    CUDA_IPC_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    KEEPER_PID_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    cuda_ipc: CudaIpcHandle
    descriptor: DescriptorHandle
    keeper_pid: int
    canary: bytes
    def __init__(self, cuda_ipc: _Optional[_Union[CudaIpcHandle, _Mapping]] = ..., descriptor: _Optional[_Union[DescriptorHandle, _Mapping]] = ..., keeper_pid: _Optional[int] = ..., canary: _Optional[bytes] = ...) -> None: ...

class CudaIpcHandle(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: bytes
    def __init__(self, handle: _Optional[bytes] = ...) -> None: ...

class DescriptorHandle(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: DescriptorKind
    def __init__(self, kind: _Optional[_Union[DescriptorKind, str]] = ...) -> None: ...

class ReturnRequest(_message.Message):
    __slots__ = ("request_id", "lease_ids", "host_room")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    HOST_ROOM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    host_room: HostRoom
    def __init__(self, request_id: _Optional[str] = ..., lease_ids: _Optional[_Iterable[str]] = ..., host_room: _Optional[_Union[HostRoom, _Mapping]] = ...) -> None: ...

class ReturnReply(_message.Message):
    __slots__ = ("returned_lease_ids", "unknown_lease_ids")
    RETURNED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    returned_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    unknown_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, returned_lease_ids: _Optional[_Iterable[str]] = ..., unknown_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("request_id", "spared_lease_ids", "offered_lease_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPARED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    OFFERED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spared_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    offered_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., spared_lease_ids: _Optional[_Iterable[str]] = ..., offered_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExchangeReply(_message.Message):
    __slots__ = ("spared_lease_ids", "revoked_lease_ids")
    SPARED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    spared_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    revoked_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spared_lease_ids: _Optional[_Iterable[str]] = ..., revoked_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ReserveHostRequest(_message.Message):
    __slots__ = ("request_id", "host_room")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_ROOM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    host_room: HostRoom
    def __init__(self, request_id: _Optional[str] = ..., host_room: _Optional[_Union[HostRoom, _Mapping]] = ...) -> None: ...

class ReserveHostReply(_message.Message):
    __slots__ = ("host_room",)
    HOST_ROOM_FIELD_NUMBER: _ClassVar[int]
    host_room: HostRoom
    def __init__(self, host_room: _Optional[_Union[HostRoom, _Mapping]] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("request_id", "gpu", "nbytes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gpu: str
    nbytes: int
    def __init__(self, request_id: _Optional[str] = ..., gpu: _Optional[str] = ..., nbytes: _Optional[int] = ...) -> None: ...

class OfferReply(_message.Message):
    __slots__ = ("offered_bytes", "lent_bytes")
    OFFERED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    offered_bytes: int
    lent_bytes: int
    def __init__(self, offered_bytes: _Optional[int] = ..., lent_bytes: _Optional[int] = ...) -> None: ...

class ReclaimRequest(_message.Message):
    __slots__ = ("request_id", "gpu", "nbytes", "deadline_seconds")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gpu: str
    nbytes: int
    deadline_seconds: float
    def __init__(self, request_id: _Optional[str] = ..., gpu: _Optional[str] = ..., nbytes: _Optional[int] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class ReclaimReply(_message.Message):
    __slots__ = ("asked_bytes", "revoked_bytes", "freed_bytes", "quarantined_bytes", "seconds")
    ASKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REVOKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    asked_bytes: int
    revoked_bytes: int
    freed_bytes: int
    quarantined_bytes: int
    seconds: float
    def __init__(self, asked_bytes: _Optional[int] = ..., revoked_bytes: _Optional[int] = ..., freed_bytes: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("gpu",)
    GPU_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    def __init__(self, gpu: _Optional[str] = ...) -> None: ...

class GetStateReply(_message.Message):
    __slots__ = ("version", "uptime_seconds", "restarting", "gpus", "leases", "tenants", "events", "host_pool_bytes", "host_reserved_bytes", "sessions", "invariant_violations", "clients", "links")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RESTARTING_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    HOST_POOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    INVARIANT_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    version: str
    uptime_seconds: float
    restarting: bool
    gpus: _containers.RepeatedCompositeFieldContainer[GpuState]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantState]
    events: _containers.RepeatedCompositeFieldContainer[EventLine]
    host_pool_bytes: int
    host_reserved_bytes: int
    sessions: int
    invariant_violations: int
    clients: _containers.RepeatedCompositeFieldContainer[ClientRelease]
    links: _containers.RepeatedCompositeFieldContainer[LinkState]
    def __init__(self, version: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., restarting: bool = ..., gpus: _Optional[_Iterable[_Union[GpuState, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantState, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[EventLine, _Mapping]]] = ..., host_pool_bytes: _Optional[int] = ..., host_reserved_bytes: _Optional[int] = ..., sessions: _Optional[int] = ..., invariant_violations: _Optional[int] = ..., clients: _Optional[_Iterable[_Union[ClientRelease, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[LinkState, _Mapping]]] = ...) -> None: ...

class ClientRelease(_message.Message):
    __slots__ = ("version", "sessions")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    version: str
    sessions: int
    def __init__(self, version: _Optional[str] = ..., sessions: _Optional[int] = ...) -> None: ...

class GpuState(_message.Message):
    __slots__ = ("gpu", "total_bytes", "used_by_others_bytes", "lent_bytes", "quarantined_bytes", "returning_bytes", "free_bytes", "reserve_bytes", "lendable_bytes", "trouble", "warnings", "model", "quiet_seconds", "lending", "waits_for", "drained")
    GPU_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BY_OTHERS_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RETURNING_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENDABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUIET_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LENDING_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    total_bytes: int
    used_by_others_bytes: int
    lent_bytes: int
    quarantined_bytes: int
    returning_bytes: int
    free_bytes: int
    reserve_bytes: int
    lendable_bytes: int
    trouble: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    model: str
    quiet_seconds: float
    lending: str
    waits_for: str
    drained: bool
    def __init__(self, gpu: _Optional[str] = ..., total_bytes: _Optional[int] = ..., used_by_others_bytes: _Optional[int] = ..., lent_bytes: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ..., returning_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., reserve_bytes: _Optional[int] = ..., lendable_bytes: _Optional[int] = ..., trouble: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., quiet_seconds: _Optional[float] = ..., lending: _Optional[str] = ..., waits_for: _Optional[str] = ..., drained: bool = ...) -> None: ...

class TenantState(_message.Message):
    __slots__ = ("tenant", "leased_bytes", "quota_bytes", "host_reserved_bytes", "sessions")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LEASED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    leased_bytes: int
    quota_bytes: int
    host_reserved_bytes: int
    sessions: int
    def __init__(self, tenant: _Optional[str] = ..., leased_bytes: _Optional[int] = ..., quota_bytes: _Optional[int] = ..., host_reserved_bytes: _Optional[int] = ..., sessions: _Optional[int] = ...) -> None: ...

class EventLine(_message.Message):
    __slots__ = ("seconds_ago", "text", "tenant", "number")
    SECONDS_AGO_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    seconds_ago: float
    text: str
    tenant: str
    number: int
    def __init__(self, seconds_ago: _Optional[float] = ..., text: _Optional[str] = ..., tenant: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class GetEventsRequest(_message.Message):
    __slots__ = ("epoch", "after")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    after: int
    def __init__(self, epoch: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class GetEventsReply(_message.Message):
    __slots__ = ("epoch", "cursor", "partial", "events")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    cursor: int
    partial: bool
    events: _containers.RepeatedCompositeFieldContainer[EventLine]
    def __init__(self, epoch: _Optional[str] = ..., cursor: _Optional[int] = ..., partial: bool = ..., events: _Optional[_Iterable[_Union[EventLine, _Mapping]]] = ...) -> None: ...

class GetQuotasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetQuotasReply(_message.Message):
    __slots__ = ("quotas", "caller_limits")
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    CALLER_LIMITS_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[Quota]
    caller_limits: CallerLimits
    def __init__(self, quotas: _Optional[_Iterable[_Union[Quota, _Mapping]]] = ..., caller_limits: _Optional[_Union[CallerLimits, _Mapping]] = ...) -> None: ...

class CallerLimits(_message.Message):
    __slots__ = ("connections_per_uid", "sessions_per_process", "calls_per_process", "calls_per_uid", "calls_per_second_per_process", "calls_per_second_per_uid")
    CONNECTIONS_PER_UID_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_PER_PROCESS_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_PROCESS_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_UID_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_SECOND_PER_PROCESS_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_SECOND_PER_UID_FIELD_NUMBER: _ClassVar[int]
    connections_per_uid: int
    sessions_per_process: int
    calls_per_process: int
    calls_per_uid: int
    calls_per_second_per_process: float
    calls_per_second_per_uid: float
    def __init__(self, connections_per_uid: _Optional[int] = ..., sessions_per_process: _Optional[int] = ..., calls_per_process: _Optional[int] = ..., calls_per_uid: _Optional[int] = ..., calls_per_second_per_process: _Optional[float] = ..., calls_per_second_per_uid: _Optional[float] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("tenant", "nbytes", "is_default", "revision", "held_bytes", "leases", "leases_are_default", "held_leases", "sessions", "sessions_are_default", "held_sessions", "weight", "weight_is_default", "priority", "priority_is_default")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASES_ARE_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    HELD_LEASES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_ARE_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    HELD_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    nbytes: int
    is_default: bool
    revision: int
    held_bytes: int
    leases: int
    leases_are_default: bool
    held_leases: int
    sessions: int
    sessions_are_default: bool
    held_sessions: int
    weight: float
    weight_is_default: bool
    priority: int
    priority_is_default: bool
    def __init__(self, tenant: _Optional[str] = ..., nbytes: _Optional[int] = ..., is_default: bool = ..., revision: _Optional[int] = ..., held_bytes: _Optional[int] = ..., leases: _Optional[int] = ..., leases_are_default: bool = ..., held_leases: _Optional[int] = ..., sessions: _Optional[int] = ..., sessions_are_default: bool = ..., held_sessions: _Optional[int] = ..., weight: _Optional[float] = ..., weight_is_default: bool = ..., priority: _Optional[int] = ..., priority_is_default: bool = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("request_id", "tenant", "nbytes", "use_default", "revision", "leases", "default_leases", "sessions", "default_sessions", "weight", "default_weight", "priority", "default_priority", "knows_deferred")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    USE_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LEASES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    KNOWS_DEFERRED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    nbytes: int
    use_default: bool
    revision: int
    leases: int
    default_leases: bool
    sessions: int
    default_sessions: bool
    weight: float
    default_weight: bool
    priority: int
    default_priority: bool
    knows_deferred: bool
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., nbytes: _Optional[int] = ..., use_default: bool = ..., revision: _Optional[int] = ..., leases: _Optional[int] = ..., default_leases: bool = ..., sessions: _Optional[int] = ..., default_sessions: bool = ..., weight: _Optional[float] = ..., default_weight: bool = ..., priority: _Optional[int] = ..., default_priority: bool = ..., knows_deferred: bool = ...) -> None: ...

class SetQuotaReply(_message.Message):
    __slots__ = ("outcome", "quota")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    outcome: QuotaOutcome
    quota: Quota
    def __init__(self, outcome: _Optional[_Union[QuotaOutcome, str]] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ...) -> None: ...

class QuiesceRequest(_message.Message):
    __slots__ = ("request_id", "gpu", "seconds", "take_back")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TAKE_BACK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gpu: str
    seconds: float
    take_back: bool
    def __init__(self, request_id: _Optional[str] = ..., gpu: _Optional[str] = ..., seconds: _Optional[float] = ..., take_back: bool = ...) -> None: ...

class QuiesceReply(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("request_id", "gpus", "all_gpus", "deadline_seconds", "dry_run")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    ALL_GPUS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gpus: _containers.RepeatedScalarFieldContainer[str]
    all_gpus: bool
    deadline_seconds: float
    dry_run: bool
    def __init__(self, request_id: _Optional[str] = ..., gpus: _Optional[_Iterable[str]] = ..., all_gpus: bool = ..., deadline_seconds: _Optional[float] = ..., dry_run: bool = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("gpus", "hits", "deadline_seconds", "copy_seconds", "dry_run")
    GPUS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COPY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedScalarFieldContainer[str]
    hits: _containers.RepeatedCompositeFieldContainer[DrainHit]
    deadline_seconds: float
    copy_seconds: float
    dry_run: bool
    def __init__(self, gpus: _Optional[_Iterable[str]] = ..., hits: _Optional[_Iterable[_Union[DrainHit, _Mapping]]] = ..., deadline_seconds: _Optional[float] = ..., copy_seconds: _Optional[float] = ..., dry_run: bool = ...) -> None: ...

class DrainHit(_message.Message):
    __slots__ = ("gpu", "tenant", "session_id", "pid", "leases", "nbytes", "copy_bytes", "quarantined_bytes")
    GPU_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_BYTES_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    tenant: str
    session_id: str
    pid: int
    leases: int
    nbytes: int
    copy_bytes: int
    quarantined_bytes: int
    def __init__(self, gpu: _Optional[str] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., pid: _Optional[int] = ..., leases: _Optional[int] = ..., nbytes: _Optional[int] = ..., copy_bytes: _Optional[int] = ..., quarantined_bytes: _Optional[int] = ...) -> None: ...

class UndrainRequest(_message.Message):
    __slots__ = ("request_id", "gpus", "all_gpus")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    ALL_GPUS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gpus: _containers.RepeatedScalarFieldContainer[str]
    all_gpus: bool
    def __init__(self, request_id: _Optional[str] = ..., gpus: _Optional[_Iterable[str]] = ..., all_gpus: bool = ...) -> None: ...

class UndrainReply(_message.Message):
    __slots__ = ("gpus",)
    GPUS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gpus: _Optional[_Iterable[str]] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("source", "target")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class ProbeLinksRequest(_message.Message):
    __slots__ = ("request_id", "links", "sizes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    links: _containers.RepeatedCompositeFieldContainer[Link]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[str] = ..., links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class ProbeLinksReply(_message.Message):
    __slots__ = ("probes",)
    PROBES_FIELD_NUMBER: _ClassVar[int]
    probes: _containers.RepeatedCompositeFieldContainer[LinkProbe]
    def __init__(self, probes: _Optional[_Iterable[_Union[LinkProbe, _Mapping]]] = ...) -> None: ...

class LinkProbe(_message.Message):
    __slots__ = ("link", "samples", "problem")
    LINK_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    link: Link
    samples: _containers.RepeatedCompositeFieldContainer[LinkSample]
    problem: str
    def __init__(self, link: _Optional[_Union[Link, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[LinkSample, _Mapping]]] = ..., problem: _Optional[str] = ...) -> None: ...

class LinkSample(_message.Message):
    __slots__ = ("nbytes", "seconds")
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    nbytes: int
    seconds: float
    def __init__(self, nbytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class LinkState(_message.Message):
    __slots__ = ("link", "bytes_per_second", "latency_seconds", "slow")
    LINK_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    link: Link
    bytes_per_second: float
    latency_seconds: float
    slow: str
    def __init__(self, link: _Optional[_Union[Link, _Mapping]] = ..., bytes_per_second: _Optional[float] = ..., latency_seconds: _Optional[float] = ..., slow: _Optional[str] = ...) -> None: ...
