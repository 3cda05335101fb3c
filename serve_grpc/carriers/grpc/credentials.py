"""How a connection is made safe, and the options of channels and servers.

TLS follows Ray's own switches: with `RAY_USE_TLS=1` both sides present certificates, and a file
that is missing stops the start; there is no way back to plaintext.
"""

from __future__ import annotations

import grpc
from grpc.aio import _channel

from serve_grpc.carriers.link import SESSION_MESSAGE_BYTES
from serve_grpc.config import Settings
from serve_grpc.shared_memory.blocks import keep_freed_memory

__all__ = [
    "bind",
    "channel_options",
    "keepalive_ms",
    "largest_message",
    "open_channel",
    "server_options",
]

# What each option is for, and which ones were found to matter: docs/decisions/0004-grpc-options.md
# and, for the limits, 0014-limits-against-hostile-peers.md.
KEEPALIVE_MS = 5_000
"""Of a caller's connections, until it has more than a few."""
FEW_CONNECTIONS = 25
"""Those beyond are asked as much less often as there are more. A ping and its answer cost a process
some 0.15 ms: for 1,000 connections, one each 5 s would be 3 % of a core."""
LONGEST_KEEPALIVE_MS = 60_000
REPLICA_KEEPALIVE = 12
"""A replica's keepalive, in callers' keepalives: whoever lives has pinged long before."""
PING_TIMEOUT_MS = 3_000
METADATA_BYTES = 16 * 1024
HANDSHAKE_TIMEOUT_MS = 10_000
"""For TCP, TLS and HTTP/2 together; the session's own handshake has as long again."""
MAX_IDLE_MS = 60_000
"""Of a connection without any call; a session is a call."""
MAX_STREAMS = 1_000

_BOTH_SIDES = [
    # Nobody reads it here, and it keeps 4 KB of events of each connection.
    ("grpc.enable_channelz", 0),
    # Nobody here compresses; grpcio 1.74 inflates a bomb before it looks at the size.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    # With two different values, gRPC refuses by chance in between.
    ("grpc.max_metadata_size", METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
]


def keepalive_ms(connections: int) -> int:
    """How long a connection may be silent before a caller that has so many others pings."""
    return min(
        LONGEST_KEEPALIVE_MS, KEEPALIVE_MS * max(FEW_CONNECTIONS, connections) // FEW_CONNECTIONS
    )


def channel_options(connections: int = 0) -> list[tuple[str, int]]:
    """Options of the channel of a caller that has so many others."""
    return [
        *_BOTH_SIDES,
        ("grpc.keepalive_time_ms", keepalive_ms(connections)),
        # This one closes a silent connection; but a ping waits behind a write that the network does
        # not take, and then only TCP_USER_TIMEOUT helps, which C-core sets to keepalive_timeout_ms.
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # Sessions of different replicas, or of a replica that replaced one, share no connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # gRPC's retries cover streams, not the requests in them.
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", SESSION_MESSAGE_BYTES),
        ("grpc.max_send_message_length", SESSION_MESSAGE_BYTES),
    ]


def largest_message(settings: Settings) -> int:
    """Bytes of the largest message a replica takes: a plain call has its payload in one, beside
    its envelope."""
    return min(max(SESSION_MESSAGE_BYTES, settings.max_message_bytes + 64 * 1024), 2**31 - 1)


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of a replica's server."""
    return [
        *_BOTH_SIDES,
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Else a refusal is held back for 0.1 to 1 s, and with it what was sent.
        ("grpc.http.tarpit", 0),
        # Two servers on one port would share its connections between them.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_time_ms", REPLICA_KEEPALIVE * KEEPALIVE_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", largest_message(settings)),
        ("grpc.max_send_message_length", largest_message(settings)),
    ]


def open_channel(address: str, settings: Settings, connections: int = 0) -> grpc.aio.Channel:
    """A channel to `address` for a session; connects when it is first used.

    Args:
        address: "host:port".
        settings: For TLS.
        connections: How many this process has already.
    """
    # Not by the names in `grpc.aio`: libraries that observe gRPC replace those for the whole
    # process, and a session is no request that could be observed (see `interceptors.py`).
    options = channel_options(connections)
    keep_freed_memory()
    if not settings.use_tls:
        return _channel.insecure_channel(address, options=options)
    certificate, key, authority = _tls_files(settings)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authority, private_key=key, certificate_chain=certificate
    )
    return _channel.secure_channel(address, credentials, options=options)


def bind(server: grpc.aio.Server, address: str, settings: Settings) -> int:
    """Listen on `address`; returns the port.

    Raises:
        RuntimeError: The address is taken or not this machine's.
    """
    keep_freed_memory()
    if not settings.use_tls:
        return int(server.add_insecure_port(address))
    certificate, key, authority = _tls_files(settings)
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authority, require_client_auth=True
    )
    return int(server.add_secure_port(address, credentials))


def _tls_files(settings: Settings) -> tuple[bytes, bytes, bytes]:
    paths = {
        "RAY_TLS_SERVER_CERT": settings.tls_cert_path,
        "RAY_TLS_SERVER_KEY": settings.tls_key_path,
        "RAY_TLS_CA_CERT": settings.tls_ca_path,
    }
    missing = [name for name, path in paths.items() if not path]
    if missing:
        raise RuntimeError(f"RAY_USE_TLS is on, so {' and '.join(missing)} must be set")
    certificate, key, authority = (_read(name, path) for name, path in paths.items())
    return certificate, key, authority


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise RuntimeError(f"{name}: cannot read {path!r}: {error.strerror}") from error
