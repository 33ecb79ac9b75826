from zipmoe.internal.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeDecoderRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeDecoderResponse(_message.Message):
    __slots__ = ("store_digest", "e_arena", "sm_arena", "tensor_arena", "worker_count")
    STORE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    E_ARENA_FIELD_NUMBER: _ClassVar[int]
    SM_ARENA_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ARENA_FIELD_NUMBER: _ClassVar[int]
    WORKER_COUNT_FIELD_NUMBER: _ClassVar[int]
    store_digest: str
    e_arena: _types_pb2.ArenaDescriptor
    sm_arena: _types_pb2.ArenaDescriptor
    tensor_arena: _types_pb2.ArenaDescriptor
    worker_count: int
    def __init__(self, store_digest: _Optional[str] = ..., e_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., sm_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., tensor_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., worker_count: _Optional[int] = ...) -> None: ...

class FetchExpertsRequest(_message.Message):
    __slots__ = ("cancels", "e_releases", "sm_releases", "tensor_releases", "reads", "recoveries", "remaining_s")
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    E_RELEASES_FIELD_NUMBER: _ClassVar[int]
    SM_RELEASES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RELEASES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    e_releases: _containers.RepeatedCompositeFieldContainer[_types_pb2.SlotRef]
    sm_releases: _containers.RepeatedCompositeFieldContainer[_types_pb2.SlotRef]
    tensor_releases: _containers.RepeatedCompositeFieldContainer[_types_pb2.SlotRef]
    reads: _containers.RepeatedCompositeFieldContainer[ReadFetch]
    recoveries: _containers.RepeatedCompositeFieldContainer[RecoverFetch]
    remaining_s: float
    def __init__(self, cancels: _Optional[_Iterable[int]] = ..., e_releases: _Optional[_Iterable[_Union[_types_pb2.SlotRef, _Mapping]]] = ..., sm_releases: _Optional[_Iterable[_Union[_types_pb2.SlotRef, _Mapping]]] = ..., tensor_releases: _Optional[_Iterable[_Union[_types_pb2.SlotRef, _Mapping]]] = ..., reads: _Optional[_Iterable[_Union[ReadFetch, _Mapping]]] = ..., recoveries: _Optional[_Iterable[_Union[RecoverFetch, _Mapping]]] = ..., remaining_s: _Optional[float] = ...) -> None: ...

class ReadFetch(_message.Message):
    __slots__ = ("operation_id", "key", "e_slot", "sm_slot", "urgency")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    E_SLOT_FIELD_NUMBER: _ClassVar[int]
    SM_SLOT_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: _types_pb2.ExpertKey
    e_slot: _types_pb2.SlotRef
    sm_slot: _types_pb2.SlotRef
    urgency: int
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[_types_pb2.ExpertKey, _Mapping]] = ..., e_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., sm_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., urgency: _Optional[int] = ...) -> None: ...

class RecoverFetch(_message.Message):
    __slots__ = ("operation_id", "key", "e_slot", "sm_slot", "tensor_slot", "urgency")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    E_SLOT_FIELD_NUMBER: _ClassVar[int]
    SM_SLOT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_SLOT_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: _types_pb2.ExpertKey
    e_slot: _types_pb2.SlotRef
    sm_slot: _types_pb2.SlotRef
    tensor_slot: _types_pb2.SlotRef
    urgency: int
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[_types_pb2.ExpertKey, _Mapping]] = ..., e_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., sm_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., tensor_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., urgency: _Optional[int] = ...) -> None: ...

class FetchExpertsResponse(_message.Message):
    __slots__ = ("opened", "completed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    opened: FetchSessionOpened
    completed: FetchesCompleted
    def __init__(self, opened: _Optional[_Union[FetchSessionOpened, _Mapping]] = ..., completed: _Optional[_Union[FetchesCompleted, _Mapping]] = ...) -> None: ...

class FetchSessionOpened(_message.Message):
    __slots__ = ("first_e_generation", "first_sm_generation", "first_tensor_generation")
    FIRST_E_GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SM_GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_TENSOR_GENERATION_FIELD_NUMBER: _ClassVar[int]
    first_e_generation: int
    first_sm_generation: int
    first_tensor_generation: int
    def __init__(self, first_e_generation: _Optional[int] = ..., first_sm_generation: _Optional[int] = ..., first_tensor_generation: _Optional[int] = ...) -> None: ...

class FetchesCompleted(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedCompositeFieldContainer[FetchCompleted]
    def __init__(self, completions: _Optional[_Iterable[_Union[FetchCompleted, _Mapping]]] = ...) -> None: ...

class FetchCompleted(_message.Message):
    __slots__ = ("operation_id", "status", "bytes_read", "work_s", "first_tensor_only")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TENSOR_ONLY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    status: _types_pb2.OperationStatus
    bytes_read: int
    work_s: float
    first_tensor_only: bool
    def __init__(self, operation_id: _Optional[int] = ..., status: _Optional[_Union[_types_pb2.OperationStatus, _Mapping]] = ..., bytes_read: _Optional[int] = ..., work_s: _Optional[float] = ..., first_tensor_only: bool = ...) -> None: ...
