from aqua_protos import broker_pb2 as _broker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClientFrame(_message.Message):
    __slots__ = ("hello", "keepalive", "goodbye", "call")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    keepalive: Keepalive
    goodbye: Goodbye
    call: Call
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., keepalive: _Optional[_Union[Keepalive, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "features", "home_gpu", "sub_tenant", "program", "version", "session_id", "leases", "host_room", "figures", "newest_protocol")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HOME_GPU_FIELD_NUMBER: _ClassVar[int]
    SUB_TENANT_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    HOST_ROOM_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    home_gpu: str
    sub_tenant: str
    program: str
    version: str
    session_id: str
    leases: _containers.RepeatedCompositeFieldContainer[LeaseUse]
    host_room: _broker_pb2.HostRoom
    figures: ClientFigures
    newest_protocol: int
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., home_gpu: _Optional[str] = ..., sub_tenant: _Optional[str] = ..., program: _Optional[str] = ..., version: _Optional[str] = ..., session_id: _Optional[str] = ..., leases: _Optional[_Iterable[_Union[LeaseUse, _Mapping]]] = ..., host_room: _Optional[_Union[_broker_pb2.HostRoom, _Mapping]] = ..., figures: _Optional[_Union[ClientFigures, _Mapping]] = ..., newest_protocol: _Optional[int] = ...) -> None: ...

class LeaseUse(_message.Message):
    __slots__ = ("lease_id", "used_bytes", "copy_bytes", "idle_seconds")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    used_bytes: int
    copy_bytes: int
    idle_seconds: float
    def __init__(self, lease_id: _Optional[str] = ..., used_bytes: _Optional[int] = ..., copy_bytes: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class Keepalive(_message.Message):
    __slots__ = ("sequence", "leases", "host_room", "figures")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    HOST_ROOM_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    leases: _containers.RepeatedCompositeFieldContainer[LeaseUse]
    host_room: _broker_pb2.HostRoom
    figures: ClientFigures
    def __init__(self, sequence: _Optional[int] = ..., leases: _Optional[_Iterable[_Union[LeaseUse, _Mapping]]] = ..., host_room: _Optional[_Union[_broker_pb2.HostRoom, _Mapping]] = ..., figures: _Optional[_Union[ClientFigures, _Mapping]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("figures",)
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    figures: ClientFigures
    def __init__(self, figures: _Optional[_Union[ClientFigures, _Mapping]] = ...) -> None: ...

class ClientFigures(_message.Message):
    __slots__ = ("peer_offload_bytes", "host_offload_bytes", "peer_fetch_bytes", "host_fetch_bytes", "evacuated_bytes", "fallbacks", "fetch_durations", "promoted_bytes", "fetched_from")
    class FallbacksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class FetchDurationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FetchDurations
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FetchDurations, _Mapping]] = ...) -> None: ...
    class FetchedFromEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LinkUse
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[LinkUse, _Mapping]] = ...) -> None: ...
    PEER_OFFLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_OFFLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEER_FETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_FETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVACUATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    FETCH_DURATIONS_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FROM_FIELD_NUMBER: _ClassVar[int]
    peer_offload_bytes: int
    host_offload_bytes: int
    peer_fetch_bytes: int
    host_fetch_bytes: int
    evacuated_bytes: int
    fallbacks: _containers.ScalarMap[str, int]
    fetch_durations: _containers.MessageMap[str, FetchDurations]
    promoted_bytes: int
    fetched_from: _containers.MessageMap[str, LinkUse]
    def __init__(self, peer_offload_bytes: _Optional[int] = ..., host_offload_bytes: _Optional[int] = ..., peer_fetch_bytes: _Optional[int] = ..., host_fetch_bytes: _Optional[int] = ..., evacuated_bytes: _Optional[int] = ..., fallbacks: _Optional[_Mapping[str, int]] = ..., fetch_durations: _Optional[_Mapping[str, FetchDurations]] = ..., promoted_bytes: _Optional[int] = ..., fetched_from: _Optional[_Mapping[str, LinkUse]] = ...) -> None: ...

class LinkUse(_message.Message):
    __slots__ = ("fetches", "nbytes", "nanoseconds")
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    NANOSECONDS_FIELD_NUMBER: _ClassVar[int]
    fetches: int
    nbytes: int
    nanoseconds: int
    def __init__(self, fetches: _Optional[int] = ..., nbytes: _Optional[int] = ..., nanoseconds: _Optional[int] = ...) -> None: ...

class FetchDurations(_message.Message):
    __slots__ = ("counts", "sum_nanoseconds")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_NANOSECONDS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum_nanoseconds: int
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., sum_nanoseconds: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("number", "method", "payload", "seconds")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    number: int
    method: str
    payload: bytes
    seconds: float
    def __init__(self, number: _Optional[int] = ..., method: _Optional[str] = ..., payload: _Optional[bytes] = ..., seconds: _Optional[float] = ...) -> None: ...

class DaemonFrame(_message.Message):
    __slots__ = ("welcome", "refusal", "keepalive_reply", "revoke", "slab_descriptor", "leases_lost", "restarting", "call_reply")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_REPLY_FIELD_NUMBER: _ClassVar[int]
    REVOKE_FIELD_NUMBER: _ClassVar[int]
    SLAB_DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    LEASES_LOST_FIELD_NUMBER: _ClassVar[int]
    RESTARTING_FIELD_NUMBER: _ClassVar[int]
    CALL_REPLY_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    keepalive_reply: KeepaliveReply
    revoke: Revoke
    slab_descriptor: SlabDescriptor
    leases_lost: LeasesLost
    restarting: Restarting
    call_reply: CallReply
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., keepalive_reply: _Optional[_Union[KeepaliveReply, _Mapping]] = ..., revoke: _Optional[_Union[Revoke, _Mapping]] = ..., slab_descriptor: _Optional[_Union[SlabDescriptor, _Mapping]] = ..., leases_lost: _Optional[_Union[LeasesLost, _Mapping]] = ..., restarting: _Optional[_Union[Restarting, _Mapping]] = ..., call_reply: _Optional[_Union[CallReply, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "features", "session_id", "token", "tenant", "term_seconds", "smallest_slab_bytes", "largest_slab_bytes", "daemon_version", "ended_lease_ids", "unheard_lease_ids", "has_sentinel")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TERM_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    DAEMON_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENDED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    HAS_SENTINEL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    session_id: str
    token: bytes
    tenant: str
    term_seconds: float
    smallest_slab_bytes: int
    largest_slab_bytes: int
    daemon_version: str
    ended_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    unheard_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    has_sentinel: bool
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., session_id: _Optional[str] = ..., token: _Optional[bytes] = ..., tenant: _Optional[str] = ..., term_seconds: _Optional[float] = ..., smallest_slab_bytes: _Optional[int] = ..., largest_slab_bytes: _Optional[int] = ..., daemon_version: _Optional[str] = ..., ended_lease_ids: _Optional[_Iterable[str]] = ..., unheard_lease_ids: _Optional[_Iterable[str]] = ..., has_sentinel: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message", "reason", "largest_bytes")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LARGEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    reason: str
    largest_bytes: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ..., largest_bytes: _Optional[int] = ...) -> None: ...

class CallReply(_message.Message):
    __slots__ = ("number", "payload", "refusal")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    number: int
    payload: bytes
    refusal: Refusal
    def __init__(self, number: _Optional[int] = ..., payload: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class KeepaliveReply(_message.Message):
    __slots__ = ("sequence", "ended_lease_ids", "unheard_lease_ids")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENDED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    ended_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    unheard_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, sequence: _Optional[int] = ..., ended_lease_ids: _Optional[_Iterable[str]] = ..., unheard_lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("lender_gpu", "nbytes", "reason", "deadline_seconds", "lease_ids")
    LENDER_GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    lender_gpu: str
    nbytes: int
    reason: str
    deadline_seconds: float
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, lender_gpu: _Optional[str] = ..., nbytes: _Optional[int] = ..., reason: _Optional[str] = ..., deadline_seconds: _Optional[float] = ..., lease_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class SlabDescriptor(_message.Message):
    __slots__ = ("lease_id",)
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    def __init__(self, lease_id: _Optional[str] = ...) -> None: ...

class LeasesLost(_message.Message):
    __slots__ = ("lease_ids", "reason")
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, lease_ids: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Restarting(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
