"""Settings, read once from the environment.

This is the only module that reads `os.environ`. Ray Serve's documented variables keep their
documented meaning and default; ours begin with `SERVE_GRPC_`. A value that makes no sense is
refused here, at import, and names its variable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["LOGGER_NAME", "Settings", "settings"]

LOGGER_NAME = "ray.serve"
"""Serve's own logger, so that what this package says is found where Serve's log lines are."""

MAX_MESSAGE_BYTES = 2**63 - 1
"""What the handshake can tell the peer, whose language may have no unsigned 64 bits."""

_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class Settings:
    """Effective settings of this process.

    Attributes:
        max_message_bytes: Largest serialized request, response or stream item, in bytes
            (`RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH`; -1 means no limit, as gRPC has it).
        min_port, max_port: Range of ports a replica may listen on, both ends included; 0 and 0
            mean any free port (`SERVE_GRPC_MIN_PORT`, `SERVE_GRPC_MAX_PORT`).
        bind_host: Address a replica listens on instead of its Ray node address; empty means the
            node address (`SERVE_GRPC_BIND_HOST`).
        stream_window_items, stream_window_bytes: What a replica may send of one stream before
            the consumer has taken it (`SERVE_GRPC_STREAM_WINDOW_ITEMS`, `..._BYTES`).
        heartbeat_interval_s: Time between heartbeats of a session, in seconds
            (`SERVE_GRPC_HEARTBEAT_INTERVAL_S`). A replica silent for 2.75 intervals gets no new
            calls until it answers.
        max_connections: Connections to a replica, and sessions on them
            (`SERVE_GRPC_MAX_CONNECTIONS`).
        subset_size: Of how many replicas a caller chooses, where there are more and it has few
            calls; 0 for all (`SERVE_GRPC_SUBSET_SIZE`).
        local: Whether processes of one node use the local lane (`SERVE_GRPC_LOCAL`); under TLS only
            if the variable says so.
        local_pool_bytes: What this process keeps in shared memory for large payloads
            (`SERVE_GRPC_LOCAL_POOL_BYTES`); 0 for none, None for a share of the machine's memory.
        strict_states: Whether an illegal move of a state machine raises, instead of being logged;
            for tests of this package (`SERVE_GRPC_STRICT_STATES`).
        use_tls: Whether Ray, and so every session, speaks TLS (`RAY_USE_TLS`).
        serializers: Names of the only serializers that this process uses, as caller and as
            replica, in lower case; None means all (`SERVE_GRPC_SERIALIZERS`, separated by commas).
        stores_oversize: Whether a request or result above `max_message_bytes` goes through Ray's
            object store; else it fails (`SERVE_GRPC_OVERSIZE`, "by_reference" or "error").
        tls_cert_path, tls_key_path, tls_ca_path: PEM files (`RAY_TLS_SERVER_CERT`,
            `RAY_TLS_SERVER_KEY`, `RAY_TLS_CA_CERT`).
    """

    max_message_bytes: int = 4 * 1024 * 1024
    min_port: int = 0
    max_port: int = 0
    bind_host: str = ""
    stream_window_items: int = 256
    stream_window_bytes: int = 1024 * 1024
    heartbeat_interval_s: float = 1.0
    serializers: frozenset[str] | None = None
    stores_oversize: bool = False
    max_connections: int = 2048
    subset_size: int = 24
    local: bool = True
    local_pool_bytes: int | None = None
    strict_states: bool = False
    use_tls: bool = False
    tls_cert_path: str = ""
    tls_key_path: str = ""
    tls_ca_path: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Parse and validate.

        Raises:
            ValueError: A variable has no valid value; the text names it.
        """
        # As Ray reads it (`ray/_private/grpc_utils.py`): sessions are as safe as its own calls.
        use_tls = environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
        parsed = cls(
            max_message_bytes=_max_message_bytes(environ, cls.max_message_bytes),
            min_port=_number(environ, "SERVE_GRPC_MIN_PORT", int, 0, 0, 65535),
            max_port=_number(environ, "SERVE_GRPC_MAX_PORT", int, 0, 0, 65535),
            bind_host=environ.get("SERVE_GRPC_BIND_HOST", "").strip(),
            stream_window_items=_number(
                environ, "SERVE_GRPC_STREAM_WINDOW_ITEMS", int, cls.stream_window_items, 1, 2**31
            ),
            stream_window_bytes=_number(
                environ, "SERVE_GRPC_STREAM_WINDOW_BYTES", int, cls.stream_window_bytes, 1, 2**31
            ),
            heartbeat_interval_s=_number(
                environ,
                "SERVE_GRPC_HEARTBEAT_INTERVAL_S",
                float,
                cls.heartbeat_interval_s,
                0.05,
                3600,
            ),
            serializers=_names(environ, "SERVE_GRPC_SERIALIZERS"),
            stores_oversize=_stores_oversize(environ),
            max_connections=_number(
                environ, "SERVE_GRPC_MAX_CONNECTIONS", int, cls.max_connections, 1, 10**6
            ),
            subset_size=_number(environ, "SERVE_GRPC_SUBSET_SIZE", int, cls.subset_size, 0, 10**6),
            # Who asks for TLS expects it everywhere: no door without it, unless that is asked for.
            local=bool(_number(environ, "SERVE_GRPC_LOCAL", int, 0 if use_tls else 1, 0, 1)),
            local_pool_bytes=_local_pool_bytes(environ),
            strict_states=bool(_number(environ, "SERVE_GRPC_STRICT_STATES", int, 0, 0, 1)),
            use_tls=use_tls,
            tls_cert_path=environ.get("RAY_TLS_SERVER_CERT", ""),
            tls_key_path=environ.get("RAY_TLS_SERVER_KEY", ""),
            tls_ca_path=environ.get("RAY_TLS_CA_CERT", ""),
        )
        if bool(parsed.min_port) != bool(parsed.max_port) or parsed.min_port > parsed.max_port:
            raise ValueError(
                "SERVE_GRPC_MIN_PORT and SERVE_GRPC_MAX_PORT go together, the first not above the "
                f"second; got {parsed.min_port} and {parsed.max_port}"
            )
        return parsed


def _names(environ: Mapping[str, str], name: str) -> frozenset[str] | None:
    raw = environ.get(name)
    if raw is None:
        return None
    names = [part.strip().lower() for part in raw.split(",")]
    if not all(names):
        # An empty value is refused as well: it would be taken for "none", or for "all".
        raise ValueError(f"{name}={raw!r} must be names of serializers, separated by commas")
    return frozenset(names)


def _stores_oversize(environ: Mapping[str, str]) -> bool:
    value = environ.get("SERVE_GRPC_OVERSIZE", "error").strip().lower()
    if value not in ("error", "by_reference"):
        raise ValueError(f"SERVE_GRPC_OVERSIZE={value!r} must be 'error' or 'by_reference'")
    return value == "by_reference"


def _max_message_bytes(environ: Mapping[str, str], default: int) -> int:
    name = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
    if environ.get(name, "").strip() == "-1":
        return MAX_MESSAGE_BYTES
    return _number(environ, name, int, default, 1, MAX_MESSAGE_BYTES)


def _local_pool_bytes(environ: Mapping[str, str]) -> int | None:
    name = "SERVE_GRPC_LOCAL_POOL_BYTES"
    return _number(environ, name, int, 0, 0) if name in environ else None


def _number(
    environ: Mapping[str, str],
    name: str,
    kind: Callable[[str], _T],
    default: _T,
    low: _T,
    high: _T | None = None,
) -> _T:
    raw = environ.get(name)
    if raw is None:
        return default
    try:
        value = kind(raw)
    except ValueError:
        raise ValueError(f"{name}={raw!r} is not a number") from None
    if value != value or value < low or (high is not None and value > high):  # nan is not itself
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name}={raw!r} must be at least {low}{upper}")
    return value


settings = Settings.from_environ(os.environ)
