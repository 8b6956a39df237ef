from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_UINT8: _ClassVar[Encoding]
    ENCODING_PNG: _ClassVar[Encoding]
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_UINT8: Encoding
ENCODING_PNG: Encoding

class SampleRequest(_message.Message):
    __slots__ = ("model", "seed", "start_index", "count", "encoding", "max_chunk_rows", "expected_numerics_id", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    START_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    seed: int
    start_index: int
    count: int
    encoding: Encoding
    max_chunk_rows: int
    expected_numerics_id: str
    version: int
    def __init__(self, model: _Optional[str] = ..., seed: _Optional[int] = ..., start_index: _Optional[int] = ..., count: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., max_chunk_rows: _Optional[int] = ..., expected_numerics_id: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "count", "uniform", "encoding", "expected_numerics_id", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    count: int
    uniform: bytes
    encoding: Encoding
    expected_numerics_id: str
    version: int
    def __init__(self, model: _Optional[str] = ..., count: _Optional[int] = ..., uniform: _Optional[bytes] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., expected_numerics_id: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("start_index", "count", "encoding", "shape", "data", "png", "numerics_id")
    START_INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    start_index: int
    count: int
    encoding: Encoding
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    png: _containers.RepeatedScalarFieldContainer[bytes]
    numerics_id: str
    def __init__(self, start_index: _Optional[int] = ..., count: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., png: _Optional[_Iterable[bytes]] = ..., numerics_id: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "manifest", "numerics_id", "provider", "limits", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest: str
    numerics_id: str
    provider: str
    limits: Limits
    version: int
    def __init__(self, name: _Optional[str] = ..., manifest: _Optional[str] = ..., numerics_id: _Optional[str] = ..., provider: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_chunk_bytes", "max_sample_rows", "max_decode_rows")
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODE_ROWS_FIELD_NUMBER: _ClassVar[int]
    max_chunk_bytes: int
    max_sample_rows: int
    max_decode_rows: int
    def __init__(self, max_chunk_bytes: _Optional[int] = ..., max_sample_rows: _Optional[int] = ..., max_decode_rows: _Optional[int] = ...) -> None: ...
