from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

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
