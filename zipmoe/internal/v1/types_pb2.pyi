from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExpertKey(_message.Message):
    __slots__ = ("layer", "expert")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    layer: int
    expert: int
    def __init__(self, layer: _Optional[int] = ..., expert: _Optional[int] = ...) -> None: ...

class SlotRef(_message.Message):
    __slots__ = ("owner_id", "arena_epoch", "slot", "generation")
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    ARENA_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    owner_id: str
    arena_epoch: int
    slot: int
    generation: int
    def __init__(self, owner_id: _Optional[str] = ..., arena_epoch: _Optional[int] = ..., slot: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class ArenaDescriptor(_message.Message):
    __slots__ = ("owner_id", "arena_epoch", "broker_path", "slot_bytes", "slot_count")
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    ARENA_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BROKER_PATH_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    owner_id: str
    arena_epoch: int
    broker_path: str
    slot_bytes: int
    slot_count: int
    def __init__(self, owner_id: _Optional[str] = ..., arena_epoch: _Optional[int] = ..., broker_path: _Optional[str] = ..., slot_bytes: _Optional[int] = ..., slot_count: _Optional[int] = ...) -> None: ...

class OperationStatus(_message.Message):
    __slots__ = ("code", "error", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    error: str
    message: str
    def __init__(self, code: _Optional[int] = ..., error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Operations(_message.Message):
    __slots__ = ("cancels", "e_releases", "sm_releases", "tensor_releases", "reads", "recoveries", "remaining_s")
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    E_RELEASES_FIELD_NUMBER: _ClassVar[int]
    SM_RELEASES_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RELEASES_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    e_releases: _containers.RepeatedCompositeFieldContainer[SlotRef]
    sm_releases: _containers.RepeatedCompositeFieldContainer[SlotRef]
    tensor_releases: _containers.RepeatedCompositeFieldContainer[SlotRef]
    reads: _containers.RepeatedCompositeFieldContainer[Read]
    recoveries: _containers.RepeatedCompositeFieldContainer[Recover]
    remaining_s: float
    def __init__(self, cancels: _Optional[_Iterable[int]] = ..., e_releases: _Optional[_Iterable[_Union[SlotRef, _Mapping]]] = ..., sm_releases: _Optional[_Iterable[_Union[SlotRef, _Mapping]]] = ..., tensor_releases: _Optional[_Iterable[_Union[SlotRef, _Mapping]]] = ..., reads: _Optional[_Iterable[_Union[Read, _Mapping]]] = ..., recoveries: _Optional[_Iterable[_Union[Recover, _Mapping]]] = ..., remaining_s: _Optional[float] = ...) -> None: ...

class Read(_message.Message):
    __slots__ = ("operation_id", "key", "e_slot", "sm_slot", "urgency")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    E_SLOT_FIELD_NUMBER: _ClassVar[int]
    SM_SLOT_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: ExpertKey
    e_slot: SlotRef
    sm_slot: SlotRef
    urgency: int
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[ExpertKey, _Mapping]] = ..., e_slot: _Optional[_Union[SlotRef, _Mapping]] = ..., sm_slot: _Optional[_Union[SlotRef, _Mapping]] = ..., urgency: _Optional[int] = ...) -> None: ...

class Recover(_message.Message):
    __slots__ = ("operation_id", "key", "e_slot", "sm_slot", "tensor_slot", "urgency")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    E_SLOT_FIELD_NUMBER: _ClassVar[int]
    SM_SLOT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_SLOT_FIELD_NUMBER: _ClassVar[int]
    URGENCY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    key: ExpertKey
    e_slot: SlotRef
    sm_slot: SlotRef
    tensor_slot: SlotRef
    urgency: int
    def __init__(self, operation_id: _Optional[int] = ..., key: _Optional[_Union[ExpertKey, _Mapping]] = ..., e_slot: _Optional[_Union[SlotRef, _Mapping]] = ..., sm_slot: _Optional[_Union[SlotRef, _Mapping]] = ..., tensor_slot: _Optional[_Union[SlotRef, _Mapping]] = ..., urgency: _Optional[int] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("first_e_generation", "first_sm_generation", "first_tensor_generation")
    FIRST_E_GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SM_GENERATION_FIELD_NUMBER: _ClassVar[int]
    FIRST_TENSOR_GENERATION_FIELD_NUMBER: _ClassVar[int]
    first_e_generation: int
    first_sm_generation: int
    first_tensor_generation: int
    def __init__(self, first_e_generation: _Optional[int] = ..., first_sm_generation: _Optional[int] = ..., first_tensor_generation: _Optional[int] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("operation_id", "status", "bytes_read", "work_s", "first_tensor_only")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TENSOR_ONLY_FIELD_NUMBER: _ClassVar[int]
    operation_id: int
    status: OperationStatus
    bytes_read: int
    work_s: float
    first_tensor_only: bool
    def __init__(self, operation_id: _Optional[int] = ..., status: _Optional[_Union[OperationStatus, _Mapping]] = ..., bytes_read: _Optional[int] = ..., work_s: _Optional[float] = ..., first_tensor_only: bool = ...) -> None: ...
