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
    __slots__ = ("store_digest", "chunk_arena", "tensor_arena", "worker_count")
    STORE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ARENA_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ARENA_FIELD_NUMBER: _ClassVar[int]
    WORKER_COUNT_FIELD_NUMBER: _ClassVar[int]
    store_digest: str
    chunk_arena: _types_pb2.ArenaDescriptor
    tensor_arena: _types_pb2.ArenaDescriptor
    worker_count: int
    def __init__(self, store_digest: _Optional[str] = ..., chunk_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., tensor_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., worker_count: _Optional[int] = ...) -> None: ...

class FetchExpertsRequest(_message.Message):
    __slots__ = ("chunk_releases", "tensor_releases", "reads", "recoveries")
    CHUNK_RELEASES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RELEASES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    chunk_releases: _containers.RepeatedCompositeFieldContainer[_types_pb2.SlotRef]
    tensor_releases: _containers.RepeatedCompositeFieldContainer[_types_pb2.SlotRef]
    reads: _containers.RepeatedCompositeFieldContainer[ReadFetch]
    recoveries: _containers.RepeatedCompositeFieldContainer[RecoverFetch]
    def __init__(self, chunk_releases: _Optional[_Iterable[_Union[_types_pb2.SlotRef, _Mapping]]] = ..., tensor_releases: _Optional[_Iterable[_Union[_types_pb2.SlotRef, _Mapping]]] = ..., reads: _Optional[_Iterable[_Union[ReadFetch, _Mapping]]] = ..., recoveries: _Optional[_Iterable[_Union[RecoverFetch, _Mapping]]] = ...) -> None: ...

class ReadFetch(_message.Message):
    __slots__ = ("operation_id", "key", "parts", "chunk_slot")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SLOT_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: _types_pb2.ExpertKey
    parts: int
    chunk_slot: _types_pb2.SlotRef
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[_types_pb2.ExpertKey, _Mapping]] = ..., parts: _Optional[int] = ..., chunk_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ...) -> None: ...

class RecoverFetch(_message.Message):
    __slots__ = ("operation_id", "key", "chunk_slot", "tensor_slot")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SLOT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_SLOT_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: _types_pb2.ExpertKey
    chunk_slot: _types_pb2.SlotRef
    tensor_slot: _types_pb2.SlotRef
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[_types_pb2.ExpertKey, _Mapping]] = ..., chunk_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ..., tensor_slot: _Optional[_Union[_types_pb2.SlotRef, _Mapping]] = ...) -> None: ...

class FetchExpertsResponse(_message.Message):
    __slots__ = ("opened", "completed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    opened: FetchSessionOpened
    completed: FetchesCompleted
    def __init__(self, opened: _Optional[_Union[FetchSessionOpened, _Mapping]] = ..., completed: _Optional[_Union[FetchesCompleted, _Mapping]] = ...) -> None: ...

class FetchSessionOpened(_message.Message):
    __slots__ = ("first_chunk_generation", "first_tensor_generation")
    FIRST_CHUNK_GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_TENSOR_GENERATION_FIELD_NUMBER: _ClassVar[int]
    first_chunk_generation: int
    first_tensor_generation: int
    def __init__(self, first_chunk_generation: _Optional[int] = ..., first_tensor_generation: _Optional[int] = ...) -> None: ...

class FetchesCompleted(_message.Message):
    __slots__ = ("completions",)
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    completions: _containers.RepeatedCompositeFieldContainer[FetchCompleted]
    def __init__(self, completions: _Optional[_Iterable[_Union[FetchCompleted, _Mapping]]] = ...) -> None: ...

class FetchCompleted(_message.Message):
    __slots__ = ("operation_id", "status", "bytes_read", "work_s")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    status: _types_pb2.OperationStatus
    bytes_read: int
    work_s: float
    def __init__(self, operation_id: _Optional[int] = ..., status: _Optional[_Union[_types_pb2.OperationStatus, _Mapping]] = ..., bytes_read: _Optional[int] = ..., work_s: _Optional[float] = ...) -> None: ...
