"""Clients of an HTTP ingress: requests, streams, WebSockets, and one that hangs up."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.ray.waiting import eventually

__all__ = ["TIMEOUT_HEADER", "Visitor"]

TIMEOUT_S = 60.0
TIMEOUT_HEADER = "x-request-timeout-seconds"


class Visitor:
    """Talks to the ingress of `apps/ingress.py` below an address.

    Args:
        address: "host:port".
        prefix: Route prefix of the application.
        transport: Of the calls inside; goes into each query.
        timeout_s: Serve is asked to end each request after this; None for what it is set to.
    """

    def __init__(
        self, address: str, prefix: str, transport: str, *, timeout_s: float | None = TIMEOUT_S
    ) -> None:
        self.address = address
        self._prefix = prefix
        self._transport = transport
        self._headers = {} if timeout_s is None else {TIMEOUT_HEADER: str(timeout_s)}

    def path(self, path: str, asked: dict[str, Any]) -> str:
        """Path and query of a request."""
        return f"{self._prefix}{path}?{urlencode({'transport': self._transport, **asked})}"

    def get(
        self, path: str, *, headers: dict[str, str] | None = None, **asked: Any
    ) -> httpx.Response:
        """The whole answer."""
        return self.send("GET", path, headers=headers, **asked)

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
        **asked: Any,
    ) -> httpx.Response:
        """As `get`, with any method and a body."""
        return httpx.request(
            method,
            f"http://{self.address}{self.path(path, asked)}",
            headers={**self._headers, **(headers or {})},
            content=content,
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    @contextlib.contextmanager
    def stream(self, path: str, **asked: Any) -> Iterator[Iterator[str]]:
        """The lines of an answer, as they come; the connection is closed with the block."""
        url = f"http://{self.address}{self.path(path, asked)}"
        with httpx.stream(
            "GET", url, headers=self._headers, timeout=TIMEOUT_S, trust_env=False
        ) as answer:
            answer.raise_for_status()
            yield answer.iter_lines()

    @contextlib.contextmanager
    def chat(self, path: str, **asked: Any) -> Iterator[ClientConnection]:
        """A WebSocket."""
        with connect(
            f"ws://{self.address}{self.path(path, asked)}", open_timeout=TIMEOUT_S, proxy=None
        ) as connection:
            yield connection

    @contextlib.contextmanager
    def asking(self, path: str, **asked: Any) -> Iterator[None]:
        """A request that is sent; nobody waits for its answer, and the block's end hangs up."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), TIMEOUT_S) as connection:
            headers = {"Host": self.address, **self._headers}
            lines = [f"GET {self.path(path, asked)} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            yield

    def wait_until_ready(self) -> None:
        """A proxy may hear of an application a moment after it runs."""

        def is_ready() -> bool:
            try:
                return self.get("/echo", value="ready").status_code == 200
            except httpx.TransportError:
                return False

        eventually(is_ready, timeout_s=TIMEOUT_S)
