"""A replica's Unix socket: accepts links, and hands each to the host of sessions.

A peer of another user is not let in, and no more links are than sessions may be, those that have
proved nothing included. What else strangers may do is the host's business, as over gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from serve_grpc.carriers.host import SessionHost
from serve_grpc.carriers.link import Cause
from serve_grpc.carriers.local.forks import keep_from_children
from serve_grpc.carriers.local.link import LocalLink, stranger
from serve_grpc.config import LOGGER_NAME, Settings

__all__ = ["LocalServer"]

logger = logging.getLogger(LOGGER_NAME)

ACCEPTS = 32
"""In one turn of the loop, for links that are there have to go on."""
PAUSE_S = 0.5
"""Without accepting, when the process has no descriptor left."""


class LocalServer:
    """Lives on the loop it is started on.

    Args:
        host: Serves the links.
        settings: How many there may be.
    """

    def __init__(self, host: SessionHost, settings: Settings) -> None:
        self._host = host
        self._max_links = settings.max_connections
        self._path = ""
        self._listener: socket.socket | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._serving: dict[asyncio.Task[None], LocalLink] = {}

    def __repr__(self) -> str:
        return f"<LocalServer at {self._path!r}, {len(self._serving)} links>"

    def start(self, path: str) -> None:
        """Listen at `path`, where nothing may be yet.

        Raises:
            OSError: Something is there, the path is too long (108 bytes), its folder is not there
                or may not be written to.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(path)
            self._path = path
            # Before `listen`: until then nobody gets in, whatever the mode is.
            os.chmod(path, 0o600)
            # All callers may come at once. One for whom there is no place in the line is refused,
            # and takes another carrier for as long as its session lives.
            listener.listen(self._max_links)
            keep_from_children(listener)
        except OSError:
            listener.close()
            self._remove()
            raise
        self._listener = listener
        self._listen()

    def _remove(self) -> None:
        path, self._path = self._path, ""
        if path:
            with contextlib.suppress(FileNotFoundError):  # who cleans up may have been here
                os.unlink(path)

    def _listen(self) -> None:
        self._pause = None
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            for _ in range(ACCEPTS):
                sock, _ = self._listener.accept()
                self._let_in(sock)
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            return  # it was gone before it was let in
        except OSError as error:
            # No descriptors or no memory. The line at the door stays, and the loop would call again
            # and again.
            logger.warning("%r accepts nothing for %g s: %s", self, PAUSE_S, error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(PAUSE_S, self._listen)

    def _let_in(self, sock: socket.socket) -> None:
        refused = stranger(sock)
        if refused:
            logger.debug("a link is refused: %s", refused)
            sock.close()
            return
        link = LocalLink(sock, is_accepted=True)
        if len(self._serving) >= self._max_links:
            text = f"SERVE_GRPC_MAX_CONNECTIONS={self._max_links} links are open"
            logger.debug("a link is refused: %s", text)
            link.end(Cause.LIMIT, text)
            return
        task = asyncio.get_running_loop().create_task(self._serve(link))
        self._serving[task] = link
        task.add_done_callback(self._serving.pop)

    async def _serve(self, link: LocalLink) -> None:
        try:
            await self._host.serve(link)
        except Exception as error:
            logger.exception("%r was not served to its end", link)
            link.end(Cause.LEFT, repr(error))
        finally:
            await link.close()

    async def stop(self) -> None:
        """Accept nothing any more, remove the socket, end the links that are open."""
        listener, self._listener = self._listener, None
        if self._pause is not None:
            self._pause.cancel()
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
            self._remove()
        serving = dict(self._serving)
        for task in serving:
            task.cancel()
        # Their errors are logged by `_serve`; what is left is that they were cancelled.
        await asyncio.gather(*serving, return_exceptions=True)
        for link in serving.values():
            await link.close()  # a task that was cancelled before its first step has not
