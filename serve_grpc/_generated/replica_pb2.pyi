from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallRequest(_message.Message):
    __slots__ = ("method", "payload", "request_serializer", "response_serializer", "request_id", "multiplexed_model_id", "session_id")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MULTIPLEXED_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    method: str
    payload: bytes
    request_serializer: str
    response_serializer: str
    request_id: str
    multiplexed_model_id: str
    session_id: str
    def __init__(self, method: _Optional[str] = ..., payload: _Optional[bytes] = ..., request_serializer: _Optional[str] = ..., response_serializer: _Optional[str] = ..., request_id: _Optional[str] = ..., multiplexed_model_id: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class CallReply(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class CallPart(_message.Message):
    __slots__ = ("start", "item", "end")
    class Start(_message.Message):
        __slots__ = ("request", "input")
        REQUEST_FIELD_NUMBER: _ClassVar[int]
        INPUT_FIELD_NUMBER: _ClassVar[int]
        request: CallRequest
        input: Input
        def __init__(self, request: _Optional[_Union[CallRequest, _Mapping]] = ..., input: _Optional[_Union[Input, _Mapping]] = ...) -> None: ...
    START_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: CallPart.Start
    item: bytes
    end: bool
    def __init__(self, start: _Optional[_Union[CallPart.Start, _Mapping]] = ..., item: _Optional[bytes] = ..., end: bool = ...) -> None: ...

class CallerBatch(_message.Message):
    __slots__ = ("hello", "proof", "templates", "fragments", "requests", "credits", "cancels", "ping", "input_items")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    INPUT_ITEMS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    proof: Proof
    templates: _containers.RepeatedCompositeFieldContainer[Template]
    fragments: _containers.RepeatedCompositeFieldContainer[Fragment]
    requests: _containers.RepeatedCompositeFieldContainer[Request]
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    cancels: _containers.RepeatedScalarFieldContainer[int]
    ping: int
    input_items: _containers.RepeatedCompositeFieldContainer[InputItem]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., templates: _Optional[_Iterable[_Union[Template, _Mapping]]] = ..., fragments: _Optional[_Iterable[_Union[Fragment, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[Request, _Mapping]]] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ..., cancels: _Optional[_Iterable[int]] = ..., ping: _Optional[int] = ..., input_items: _Optional[_Iterable[_Union[InputItem, _Mapping]]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("min_version", "max_version", "replica_id", "nonce", "features", "key_id", "max_message_bytes")
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    min_version: int
    max_version: int
    replica_id: str
    nonce: bytes
    features: _containers.RepeatedScalarFieldContainer[str]
    key_id: bytes
    max_message_bytes: int
    def __init__(self, min_version: _Optional[int] = ..., max_version: _Optional[int] = ..., replica_id: _Optional[str] = ..., nonce: _Optional[bytes] = ..., features: _Optional[_Iterable[str]] = ..., key_id: _Optional[bytes] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("mac",)
    MAC_FIELD_NUMBER: _ClassVar[int]
    mac: bytes
    def __init__(self, mac: _Optional[bytes] = ...) -> None: ...

class Template(_message.Message):
    __slots__ = ("number", "method", "request_serializer", "response_serializer", "stream", "route", "app_name", "has_inputs")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    APP_NAME_FIELD_NUMBER: _ClassVar[int]
    HAS_INPUTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    method: str
    request_serializer: str
    response_serializer: str
    stream: bool
    route: str
    app_name: str
    has_inputs: bool
    def __init__(self, number: _Optional[int] = ..., method: _Optional[str] = ..., request_serializer: _Optional[str] = ..., response_serializer: _Optional[str] = ..., stream: bool = ..., route: _Optional[str] = ..., app_name: _Optional[str] = ..., has_inputs: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "template", "request_id", "payload", "timeout_ms", "multiplexed_model_id", "session_id", "credit_items", "credit_bytes", "client", "reserved_slot", "context", "stored", "inputs")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLEXED_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CREDIT_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RESERVED_SLOT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    template: int
    request_id: str
    payload: bytes
    timeout_ms: int
    multiplexed_model_id: str
    session_id: str
    credit_items: int
    credit_bytes: int
    client: str
    reserved_slot: str
    context: RequestContext
    stored: StoredPayload
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    def __init__(self, id: _Optional[int] = ..., template: _Optional[int] = ..., request_id: _Optional[str] = ..., payload: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., multiplexed_model_id: _Optional[str] = ..., session_id: _Optional[str] = ..., credit_items: _Optional[int] = ..., credit_bytes: _Optional[int] = ..., client: _Optional[str] = ..., reserved_slot: _Optional[str] = ..., context: _Optional[_Union[RequestContext, _Mapping]] = ..., stored: _Optional[_Union[StoredPayload, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("position", "name")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    position: int
    name: str
    def __init__(self, position: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class InputItem(_message.Message):
    __slots__ = ("id", "number", "kind", "payload", "error")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ITEM: _ClassVar[InputItem.Kind]
        END: _ClassVar[InputItem.Kind]
        ERROR: _ClassVar[InputItem.Kind]
    ITEM: InputItem.Kind
    END: InputItem.Kind
    ERROR: InputItem.Kind
    ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    number: int
    kind: InputItem.Kind
    payload: bytes
    error: Error
    def __init__(self, id: _Optional[int] = ..., number: _Optional[int] = ..., kind: _Optional[_Union[InputItem.Kind, str]] = ..., payload: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class StoredPayload(_message.Message):
    __slots__ = ("size", "object_id", "owner_address")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    size: int
    object_id: bytes
    owner_address: bytes
    def __init__(self, size: _Optional[int] = ..., object_id: _Optional[bytes] = ..., owner_address: _Optional[bytes] = ...) -> None: ...

class RequestContext(_message.Message):
    __slots__ = ("trace", "ray_trace", "grpc_context")
    class TraceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class RayTraceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TRACE_FIELD_NUMBER: _ClassVar[int]
    RAY_TRACE_FIELD_NUMBER: _ClassVar[int]
    GRPC_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    trace: _containers.ScalarMap[str, str]
    ray_trace: _containers.ScalarMap[str, str]
    grpc_context: bytes
    def __init__(self, trace: _Optional[_Mapping[str, str]] = ..., ray_trace: _Optional[_Mapping[str, str]] = ..., grpc_context: _Optional[bytes] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("id", "data", "segment", "offset", "size")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    segment: int
    offset: int
    size: int
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ..., segment: _Optional[int] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("id", "items", "bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    items: int
    bytes: int
    def __init__(self, id: _Optional[int] = ..., items: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ReplicaBatch(_message.Message):
    __slots__ = ("challenge", "welcome", "refusal", "fragments", "replies", "rejected", "requests_read", "ongoing", "pong", "slot_free", "drain", "standby", "input_credits")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_READ_FIELD_NUMBER: _ClassVar[int]
    ONGOING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    SLOT_FREE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    INPUT_CREDITS_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    welcome: Welcome
    refusal: Refusal
    fragments: _containers.RepeatedCompositeFieldContainer[Fragment]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    rejected: _containers.RepeatedScalarFieldContainer[int]
    requests_read: int
    ongoing: int
    pong: int
    slot_free: bool
    drain: Drain
    standby: int
    input_credits: _containers.RepeatedCompositeFieldContainer[InputCredit]
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., fragments: _Optional[_Iterable[_Union[Fragment, _Mapping]]] = ..., replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ..., rejected: _Optional[_Iterable[int]] = ..., requests_read: _Optional[int] = ..., ongoing: _Optional[int] = ..., pong: _Optional[int] = ..., slot_free: bool = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., standby: _Optional[int] = ..., input_credits: _Optional[_Iterable[_Union[InputCredit, _Mapping]]] = ...) -> None: ...

class InputCredit(_message.Message):
    __slots__ = ("id", "number", "items", "bytes", "closed")
    ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    id: int
    number: int
    items: int
    bytes: int
    closed: bool
    def __init__(self, id: _Optional[int] = ..., number: _Optional[int] = ..., items: _Optional[int] = ..., bytes: _Optional[int] = ..., closed: bool = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("version", "nonce", "epoch", "mac")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    version: int
    nonce: bytes
    epoch: int
    mac: bytes
    def __init__(self, version: _Optional[int] = ..., nonce: _Optional[bytes] = ..., epoch: _Optional[int] = ..., mac: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("max_ongoing_requests", "max_message_bytes", "features", "input_credit_items", "input_credit_bytes")
    MAX_ONGOING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    INPUT_CREDIT_ITEMS_FIELD_NUMBER: _ClassVar[int]
    INPUT_CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_ongoing_requests: int
    max_message_bytes: int
    features: _containers.RepeatedScalarFieldContainer[str]
    input_credit_items: int
    input_credit_bytes: int
    def __init__(self, max_ongoing_requests: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., input_credit_items: _Optional[int] = ..., input_credit_bytes: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Reason]
        WRONG_REPLICA: _ClassVar[Refusal.Reason]
        VERSION: _ClassVar[Refusal.Reason]
        UNAUTHENTICATED: _ClassVar[Refusal.Reason]
        DRAINING: _ClassVar[Refusal.Reason]
        PROTOCOL: _ClassVar[Refusal.Reason]
    UNSPECIFIED: Refusal.Reason
    WRONG_REPLICA: Refusal.Reason
    VERSION: Refusal.Reason
    UNAUTHENTICATED: Refusal.Reason
    DRAINING: Refusal.Reason
    PROTOCOL: Refusal.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal.Reason
    message: str
    def __init__(self, reason: _Optional[_Union[Refusal.Reason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("id", "kind", "payload", "error", "lent", "stored")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESULT: _ClassVar[Reply.Kind]
        ITEM: _ClassVar[Reply.Kind]
        END: _ClassVar[Reply.Kind]
        ERROR: _ClassVar[Reply.Kind]
    RESULT: Reply.Kind
    ITEM: Reply.Kind
    END: Reply.Kind
    ERROR: Reply.Kind
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LENT_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: Reply.Kind
    payload: bytes
    error: Error
    lent: int
    stored: StoredPayload
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[_Union[Reply.Kind, str]] = ..., payload: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., lent: _Optional[int] = ..., stored: _Optional[_Union[StoredPayload, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "type_name", "message", "traceback", "pickled", "may_have_executed", "size", "limit", "serializer", "function_name", "pid", "node_ip", "direction")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INTERNAL: _ClassVar[Error.Code]
        USER_EXCEPTION: _ClassVar[Error.Code]
        SERIALIZATION: _ClassVar[Error.Code]
        MESSAGE_TOO_LARGE: _ClassVar[Error.Code]
        DEADLINE_EXCEEDED: _ClassVar[Error.Code]
        CANCELLED: _ClassVar[Error.Code]
        INVALID_REQUEST: _ClassVar[Error.Code]
        OVERLOADED: _ClassVar[Error.Code]
        DRAINING: _ClassVar[Error.Code]
    INTERNAL: Error.Code
    USER_EXCEPTION: Error.Code
    SERIALIZATION: Error.Code
    MESSAGE_TOO_LARGE: Error.Code
    DEADLINE_EXCEEDED: Error.Code
    CANCELLED: Error.Code
    INVALID_REQUEST: Error.Code
    OVERLOADED: Error.Code
    DRAINING: Error.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    TYPE_NAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    PICKLED_FIELD_NUMBER: _ClassVar[int]
    MAY_HAVE_EXECUTED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SERIALIZER_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_NAME_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    NODE_IP_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    code: Error.Code
    type_name: str
    message: str
    traceback: str
    pickled: bytes
    may_have_executed: bool
    size: int
    limit: int
    serializer: str
    function_name: str
    pid: int
    node_ip: str
    direction: str
    def __init__(self, code: _Optional[_Union[Error.Code, str]] = ..., type_name: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., pickled: _Optional[bytes] = ..., may_have_executed: bool = ..., size: _Optional[int] = ..., limit: _Optional[int] = ..., serializer: _Optional[str] = ..., function_name: _Optional[str] = ..., pid: _Optional[int] = ..., node_ip: _Optional[str] = ..., direction: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("requests_read",)
    REQUESTS_READ_FIELD_NUMBER: _ClassVar[int]
    requests_read: int
    def __init__(self, requests_read: _Optional[int] = ...) -> None: ...
