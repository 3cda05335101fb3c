"""Settings from the environment: every variable is read, every bad value names its variable."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from serve_grpc.config import Settings
from serve_grpc.routing.retry import Backoff

MESSAGE_LENGTH = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
SERIALIZERS = "SERVE_GRPC_SERIALIZERS"
OVERSIZE = "SERVE_GRPC_OVERSIZE"
HEARTBEAT = "SERVE_GRPC_HEARTBEAT_INTERVAL_S"
PORTS = {"SERVE_GRPC_MIN_PORT": "7000", "SERVE_GRPC_MAX_PORT": "7010"}

# Ray reads the environment when it is imported, so its defaults are asked of a process without
# any of these variables.
PRINT_SERVES_DEFAULTS = """
import json
from ray.serve._private import constants as serve
print(json.dumps([
    serve.RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH,
    serve.RAY_SERVE_ROUTER_RETRY_INITIAL_BACKOFF_S,
    serve.RAY_SERVE_ROUTER_RETRY_BACKOFF_MULTIPLIER,
    serve.RAY_SERVE_ROUTER_RETRY_MAX_BACKOFF_S,
]))
"""


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()


def test_defaults_are_those_of_ray_serve() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_SERVES_DEFAULTS],
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    backoff = Backoff()
    assert json.loads(done.stdout.splitlines()[-1]) == [
        Settings().max_message_bytes,
        backoff.initial_s,
        backoff.multiplier,
        backoff.max_s,
    ]


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        (MESSAGE_LENGTH, "1048576", "max_message_bytes", 1024 * 1024),
        (MESSAGE_LENGTH, "2147483647", "max_message_bytes", 2**31 - 1),
        ("SERVE_GRPC_BIND_HOST", " 10.0.0.7 ", "bind_host", "10.0.0.7"),
        ("SERVE_GRPC_STRICT_STATES", "1", "strict_states", True),
        ("SERVE_GRPC_LOCAL", "0", "local", False),
        ("SERVE_GRPC_LOCAL", "1", "local", True),
        ("SERVE_GRPC_LOCAL_POOL_BYTES", "0", "local_pool_bytes", 0),
        ("SERVE_GRPC_LOCAL_POOL_BYTES", "1048576", "local_pool_bytes", 1024 * 1024),
        ("SERVE_GRPC_STREAM_WINDOW_ITEMS", "1", "stream_window_items", 1),
        ("SERVE_GRPC_STREAM_WINDOW_BYTES", "4096", "stream_window_bytes", 4096),
        (HEARTBEAT, "0.25", "heartbeat_interval_s", 0.25),
        (SERIALIZERS, "msgpack", "serializers", frozenset({"msgpack"})),
        (SERIALIZERS, " MsgPack,orjson ", "serializers", frozenset({"msgpack", "orjson"})),
        ("SERVE_GRPC_MAX_CONNECTIONS", "20", "max_connections", 20),
        ("SERVE_GRPC_SUBSET_SIZE", "0", "subset_size", 0),
        ("SERVE_GRPC_SUBSET_SIZE", "100", "subset_size", 100),
        (OVERSIZE, "error", "stores_oversize", False),
        (OVERSIZE, " By_Reference ", "stores_oversize", True),
        ("RAY_USE_TLS", "0", "use_tls", False),
        ("RAY_TLS_SERVER_CERT", "cert.pem", "tls_cert_path", "cert.pem"),
        ("RAY_TLS_SERVER_KEY", "key.pem", "tls_key_path", "key.pem"),
        ("RAY_TLS_CA_CERT", "ca.pem", "tls_ca_path", "ca.pem"),
    ],
)
def test_a_variable_sets_its_field_and_no_other(
    variable: str, text: str, field: str, value: object
) -> None:
    settings = Settings.from_environ({variable: text})
    assert settings == dataclasses.replace(Settings(), **{field: value})


@pytest.mark.parametrize("text", ["1", "True", "true"])
def test_under_tls_there_is_a_local_lane_only_where_it_is_asked_for(text: str) -> None:
    tls = {"RAY_USE_TLS": text}
    assert Settings.from_environ(tls) == Settings(use_tls=True, local=False)
    asked = Settings.from_environ({**tls, "SERVE_GRPC_LOCAL": "1"})
    assert asked == Settings(use_tls=True, local=True)
    assert not Settings.from_environ({**tls, "SERVE_GRPC_LOCAL": "0"}).local


@pytest.mark.parametrize("text", ["", "yes", "2", "-1", "0.5"])
def test_the_local_lane_is_on_or_off(text: str) -> None:
    with pytest.raises(ValueError, match="SERVE_GRPC_LOCAL"):
        Settings.from_environ({"SERVE_GRPC_LOCAL": text})


@pytest.mark.parametrize("text", ["", "all", "-1", "1.5"])
def test_shared_memory_has_a_size_in_whole_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="SERVE_GRPC_LOCAL_POOL_BYTES") as raised:
        Settings.from_environ({"SERVE_GRPC_LOCAL_POOL_BYTES": text})
    assert repr(text) in str(raised.value)


def test_both_ports_set_a_range() -> None:
    settings = Settings.from_environ(PORTS)
    assert (settings.min_port, settings.max_port) == (7000, 7010)


def test_a_message_length_of_minus_one_is_no_limit_as_in_grpc() -> None:
    assert Settings.from_environ({MESSAGE_LENGTH: "-1"}).max_message_bytes == 2**63 - 1


@pytest.mark.parametrize("text", ["", "many", "1.5", "0", "-2"])
@pytest.mark.parametrize(
    "variable",
    [MESSAGE_LENGTH, "SERVE_GRPC_STREAM_WINDOW_ITEMS", "SERVE_GRPC_STREAM_WINDOW_BYTES"],
)
def test_a_size_must_be_a_positive_whole_number(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=variable) as raised:
        Settings.from_environ({variable: text})
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", [str(2**64), str(10**400)], ids=len)
def test_a_limit_must_fit_the_field_that_carries_it(text: str) -> None:
    with pytest.raises(ValueError, match=MESSAGE_LENGTH):
        Settings.from_environ({MESSAGE_LENGTH: text})


@pytest.mark.parametrize("text", ["", "often", "0", "-1", "0.01", "-inf", "nan"])
def test_a_heartbeat_interval_must_be_a_usable_time(text: str) -> None:
    with pytest.raises(ValueError, match=HEARTBEAT):
        Settings.from_environ({HEARTBEAT: text})


@pytest.mark.parametrize("text", ["", " ", ",", "msgpack,", "msgpack,,orjson"])
def test_a_list_of_serializers_is_never_empty(text: str) -> None:
    with pytest.raises(ValueError, match=SERIALIZERS) as raised:
        Settings.from_environ({SERIALIZERS: text})
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["", "1", "reference", "by reference"])
def test_what_becomes_of_oversize_payloads_is_one_of_two_words(text: str) -> None:
    with pytest.raises(ValueError, match=OVERSIZE) as raised:
        Settings.from_environ({OVERSIZE: text})
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["", "http", "-1", "65536"])
@pytest.mark.parametrize("variable", list(PORTS))
def test_a_port_must_be_one(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=variable):
        Settings.from_environ({**PORTS, variable: text})


@pytest.mark.parametrize(
    "changes",
    [
        {"SERVE_GRPC_MIN_PORT": "7011"},
        {"SERVE_GRPC_MIN_PORT": "0"},
        {"SERVE_GRPC_MAX_PORT": "0"},
    ],
)
def test_half_a_port_range_or_an_empty_one_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="SERVE_GRPC_MIN_PORT and SERVE_GRPC_MAX_PORT"):
        Settings.from_environ({**PORTS, **changes})


@pytest.mark.parametrize(
    "variable", ["SERVE_GRPC_STREAM_WINDOW_ITEMS", "SERVE_GRPC_STREAM_WINDOW_BYTES"]
)
def test_a_window_must_fit_the_field_that_carries_it(variable: str) -> None:
    with pytest.raises(ValueError, match=variable):
        Settings.from_environ({variable: str(2**32)})


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.use_tls = True  # type: ignore[misc]
