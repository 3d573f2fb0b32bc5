from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescriptorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESCRIPTOR_KIND_UNSPECIFIED: _ClassVar[DescriptorKind]
    DESCRIPTOR_KIND_SHARED_MEMORY: _ClassVar[DescriptorKind]
    DESCRIPTOR_KIND_CUDA_VMM: _ClassVar[DescriptorKind]
DESCRIPTOR_KIND_UNSPECIFIED: DescriptorKind
DESCRIPTOR_KIND_SHARED_MEMORY: DescriptorKind
DESCRIPTOR_KIND_CUDA_VMM: DescriptorKind

class KeeperRequest(_message.Message):
    __slots__ = ("request_id", "attach", "allocate", "free", "register_owner", "offer_probe", "measure_link")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    ALLOCATE_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    REGISTER_OWNER_FIELD_NUMBER: _ClassVar[int]
    OFFER_PROBE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_LINK_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    attach: Attach
    allocate: Allocate
    free: Free
    register_owner: RegisterOwner
    offer_probe: OfferProbe
    measure_link: MeasureLink
    def __init__(self, request_id: _Optional[int] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., allocate: _Optional[_Union[Allocate, _Mapping]] = ..., free: _Optional[_Union[Free, _Mapping]] = ..., register_owner: _Optional[_Union[RegisterOwner, _Mapping]] = ..., offer_probe: _Optional[_Union[OfferProbe, _Mapping]] = ..., measure_link: _Optional[_Union[MeasureLink, _Mapping]] = ...) -> None: ...

class KeeperReply(_message.Message):
    __slots__ = ("request_id", "attached", "holder_proof", "allocated", "freed", "owner_registered", "gpu_report", "failed", "probe_offered", "link_measured")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    HOLDER_PROOF_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    OWNER_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    GPU_REPORT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    PROBE_OFFERED_FIELD_NUMBER: _ClassVar[int]
    LINK_MEASURED_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    attached: Attached
    holder_proof: HolderProof
    allocated: Allocated
    freed: Freed
    owner_registered: OwnerRegistered
    gpu_report: GpuReport
    failed: Failed
    probe_offered: ProbeOffered
    link_measured: LinkMeasured
    def __init__(self, request_id: _Optional[int] = ..., attached: _Optional[_Union[Attached, _Mapping]] = ..., holder_proof: _Optional[_Union[HolderProof, _Mapping]] = ..., allocated: _Optional[_Union[Allocated, _Mapping]] = ..., freed: _Optional[_Union[Freed, _Mapping]] = ..., owner_registered: _Optional[_Union[OwnerRegistered, _Mapping]] = ..., gpu_report: _Optional[_Union[GpuReport, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., probe_offered: _Optional[_Union[ProbeOffered, _Mapping]] = ..., link_measured: _Optional[_Union[LinkMeasured, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("protocol", "daemon_version", "newest_protocol")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DAEMON_VERSION_FIELD_NUMBER: _ClassVar[int]
    NEWEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    daemon_version: str
    newest_protocol: int
    def __init__(self, protocol: _Optional[int] = ..., daemon_version: _Optional[str] = ..., newest_protocol: _Optional[int] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("protocol", "keeper_pid", "gpus", "holders", "smallest_slab_bytes", "largest_slab_bytes", "keeper_version", "features")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    KEEPER_PID_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    SMALLEST_SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_SLAB_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEEPER_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    keeper_pid: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuReport]
    holders: int
    smallest_slab_bytes: int
    largest_slab_bytes: int
    keeper_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., keeper_pid: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuReport, _Mapping]]] = ..., holders: _Optional[int] = ..., smallest_slab_bytes: _Optional[int] = ..., largest_slab_bytes: _Optional[int] = ..., keeper_version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class HolderProof(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class SlabTag(_message.Message):
    __slots__ = ("lease_id", "session_id", "tenant", "safety_class", "borrower_gpu", "holder_pid", "holder_start_ticks", "holder_uid", "request_id")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SAFETY_CLASS_FIELD_NUMBER: _ClassVar[int]
    BORROWER_GPU_FIELD_NUMBER: _ClassVar[int]
    HOLDER_PID_FIELD_NUMBER: _ClassVar[int]
    HOLDER_START_TICKS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_UID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    session_id: str
    tenant: str
    safety_class: str
    borrower_gpu: str
    holder_pid: int
    holder_start_ticks: int
    holder_uid: int
    request_id: str
    def __init__(self, lease_id: _Optional[str] = ..., session_id: _Optional[str] = ..., tenant: _Optional[str] = ..., safety_class: _Optional[str] = ..., borrower_gpu: _Optional[str] = ..., holder_pid: _Optional[int] = ..., holder_start_ticks: _Optional[int] = ..., holder_uid: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class Allocate(_message.Message):
    __slots__ = ("gpu", "nbytes", "tag")
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    nbytes: int
    tag: SlabTag
    def __init__(self, gpu: _Optional[str] = ..., nbytes: _Optional[int] = ..., tag: _Optional[_Union[SlabTag, _Mapping]] = ...) -> None: ...

class Allocated(_message.Message):
    __slots__ = ("lease_id", "canary", "cuda_ipc_handle", "descriptor_kind")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    CUDA_IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_KIND_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    canary: bytes
    cuda_ipc_handle: bytes
    descriptor_kind: DescriptorKind
    def __init__(self, lease_id: _Optional[str] = ..., canary: _Optional[bytes] = ..., cuda_ipc_handle: _Optional[bytes] = ..., descriptor_kind: _Optional[_Union[DescriptorKind, str]] = ...) -> None: ...

class Free(_message.Message):
    __slots__ = ("gpu", "lease_id")
    GPU_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    lease_id: str
    def __init__(self, gpu: _Optional[str] = ..., lease_id: _Optional[str] = ...) -> None: ...

class Freed(_message.Message):
    __slots__ = ("lease_id", "scrubbed_bytes", "freed_while_mapped", "unreturned_bytes")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SCRUBBED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREED_WHILE_MAPPED_FIELD_NUMBER: _ClassVar[int]
    UNRETURNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    scrubbed_bytes: int
    freed_while_mapped: bool
    unreturned_bytes: int
    def __init__(self, lease_id: _Optional[str] = ..., scrubbed_bytes: _Optional[int] = ..., freed_while_mapped: bool = ..., unreturned_bytes: _Optional[int] = ...) -> None: ...

class RegisterOwner(_message.Message):
    __slots__ = ("gpu", "nbytes", "what_fits")
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    WHAT_FITS_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    nbytes: int
    what_fits: bool
    def __init__(self, gpu: _Optional[str] = ..., nbytes: _Optional[int] = ..., what_fits: bool = ...) -> None: ...

class OwnerRegistered(_message.Message):
    __slots__ = ("gpu", "nbytes")
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    nbytes: int
    def __init__(self, gpu: _Optional[str] = ..., nbytes: _Optional[int] = ...) -> None: ...

class OfferProbe(_message.Message):
    __slots__ = ("gpu", "nbytes")
    GPU_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    nbytes: int
    def __init__(self, gpu: _Optional[str] = ..., nbytes: _Optional[int] = ...) -> None: ...

class ProbeOffered(_message.Message):
    __slots__ = ("cuda_ipc_handle", "descriptor_kind")
    CUDA_IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_KIND_FIELD_NUMBER: _ClassVar[int]
    cuda_ipc_handle: bytes
    descriptor_kind: DescriptorKind
    def __init__(self, cuda_ipc_handle: _Optional[bytes] = ..., descriptor_kind: _Optional[_Union[DescriptorKind, str]] = ...) -> None: ...

class MeasureLink(_message.Message):
    __slots__ = ("source", "target", "sizes", "seconds", "cuda_ipc_handle", "descriptor_kind")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CUDA_IPC_HANDLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_KIND_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    sizes: _containers.RepeatedScalarFieldContainer[int]
    seconds: float
    cuda_ipc_handle: bytes
    descriptor_kind: DescriptorKind
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., sizes: _Optional[_Iterable[int]] = ..., seconds: _Optional[float] = ..., cuda_ipc_handle: _Optional[bytes] = ..., descriptor_kind: _Optional[_Union[DescriptorKind, str]] = ...) -> None: ...

class LinkMeasured(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: _containers.RepeatedCompositeFieldContainer[LinkSample]
    def __init__(self, samples: _Optional[_Iterable[_Union[LinkSample, _Mapping]]] = ...) -> None: ...

class LinkSample(_message.Message):
    __slots__ = ("nbytes", "seconds")
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    nbytes: int
    seconds: float
    def __init__(self, nbytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class GpuReport(_message.Message):
    __slots__ = ("gpu", "total_bytes", "slabs", "owners", "freed_while_mapped", "other_bytes", "not_lending", "warnings", "model", "links", "numa_node")
    GPU_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLABS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    FREED_WHILE_MAPPED_FIELD_NUMBER: _ClassVar[int]
    OTHER_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOT_LENDING_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    gpu: str
    total_bytes: int
    slabs: _containers.RepeatedCompositeFieldContainer[SlabReport]
    owners: _containers.RepeatedCompositeFieldContainer[OwnerReport]
    freed_while_mapped: int
    other_bytes: int
    not_lending: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    model: str
    links: _containers.RepeatedCompositeFieldContainer[GpuLink]
    numa_node: int
    def __init__(self, gpu: _Optional[str] = ..., total_bytes: _Optional[int] = ..., slabs: _Optional[_Iterable[_Union[SlabReport, _Mapping]]] = ..., owners: _Optional[_Iterable[_Union[OwnerReport, _Mapping]]] = ..., freed_while_mapped: _Optional[int] = ..., other_bytes: _Optional[int] = ..., not_lending: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., links: _Optional[_Iterable[_Union[GpuLink, _Mapping]]] = ..., numa_node: _Optional[int] = ...) -> None: ...

class GpuLink(_message.Message):
    __slots__ = ("peer", "kind", "count", "has_peer_access")
    PEER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HAS_PEER_ACCESS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    kind: str
    count: int
    has_peer_access: bool
    def __init__(self, peer: _Optional[str] = ..., kind: _Optional[str] = ..., count: _Optional[int] = ..., has_peer_access: bool = ...) -> None: ...

class SlabReport(_message.Message):
    __slots__ = ("tag", "nbytes")
    TAG_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    tag: SlabTag
    nbytes: int
    def __init__(self, tag: _Optional[_Union[SlabTag, _Mapping]] = ..., nbytes: _Optional[int] = ...) -> None: ...

class OwnerReport(_message.Message):
    __slots__ = ("pid", "nbytes")
    PID_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    pid: int
    nbytes: int
    def __init__(self, pid: _Optional[int] = ..., nbytes: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
