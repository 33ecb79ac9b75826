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
    __slots__ = ("store_digest", "e_arena", "sm_arena", "tensor_arena", "worker_count", "tensor_form")
    STORE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    E_ARENA_FIELD_NUMBER: _ClassVar[int]
    SM_ARENA_FIELD_NUMBER: _ClassVar[int]
    TENSOR_ARENA_FIELD_NUMBER: _ClassVar[int]
    WORKER_COUNT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FORM_FIELD_NUMBER: _ClassVar[int]
    store_digest: str
    e_arena: _types_pb2.ArenaDescriptor
    sm_arena: _types_pb2.ArenaDescriptor
    tensor_arena: _types_pb2.ArenaDescriptor
    worker_count: int
    tensor_form: str
    def __init__(self, store_digest: _Optional[str] = ..., e_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., sm_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., tensor_arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., worker_count: _Optional[int] = ..., tensor_form: _Optional[str] = ...) -> None: ...

class FetchExpertsRequest(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _types_pb2.Operations
    def __init__(self, operations: _Optional[_Union[_types_pb2.Operations, _Mapping]] = ...) -> None: ...

class FetchExpertsResponse(_message.Message):
    __slots__ = ("opened", "completed")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    opened: _types_pb2.SessionOpened
    completed: _containers.RepeatedCompositeFieldContainer[_types_pb2.Completed]
    def __init__(self, opened: _Optional[_Union[_types_pb2.SessionOpened, _Mapping]] = ..., completed: _Optional[_Iterable[_Union[_types_pb2.Completed, _Mapping]]] = ...) -> None: ...
