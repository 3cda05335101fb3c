#!/usr/bin/env bash
# What a peer said before it closed is lost if one writes to it: over a Unix socket, not over TCP.
#
# Versions: uvloop 0.23.0, CPython 3.11.7
# Expected: bytes that lie in the socket's receive buffer are read before the connection ends,
# whichever way the connection is made and whatever is written meanwhile.
# What happens: over TCP the first write to a peer that has gone still succeeds, and the reader
# gets the peer's last words. Over a Unix socket the kernel says EPIPE at once, and both asyncio
# and uvloop then drop the connection, unread bytes and all. So a server that answers and exits,
# a "going away" message, the reason of a refusal: none of them arrive if the client happens to
# write just then. The kernel has kept them: a plain recv() after the EPIPE reads them.
# Output seen:
#   plain socket  tcp: b'last words'
#   plain socket unix: b'last words', after BrokenPipeError
#   asyncio       tcp: b'last words'
#   asyncio      unix: BrokenPipeError
#   uvloop        tcp: b'last words'
#   uvloop       unix: BrokenPipeError
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check uvloop==0.23.0 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import asyncio
import socket
import sys

import uvloop


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def farewell(server: socket.socket) -> None:
    server.sendall(b"last words")
    server.close()


async def with_streams(kind: str) -> str:
    client, server = pair(kind)
    reader, writer = await asyncio.open_connection(sock=client) if kind == "tcp" else (
        await asyncio.open_unix_connection(sock=client)
    )
    farewell(server)
    writer.write(b"one more")
    try:
        return str(await reader.read(100))
    except OSError as error:
        return type(error).__name__
    finally:
        writer.close()


def with_a_plain_socket(kind: str) -> str:
    client, server = pair(kind)
    farewell(server)
    after = ""
    with client:
        try:
            client.send(b"one more")
        except OSError as error:
            after = f", after {type(error).__name__}"
        return f"{client.recv(100)}{after}"


found = []
for kind in "tcp", "unix":
    found.append(with_a_plain_socket(kind))
    print(f"plain socket {kind:>4}: {found[-1]}")
for module in asyncio, uvloop:
    for kind in "tcp", "unix":
        loop = module.new_event_loop()
        found.append(loop.run_until_complete(with_streams(kind)))
        loop.close()
        print(f"{module.__name__:12} {kind:>4}: {found[-1]}")
read = "b'last words'"
lost = "BrokenPipeError"
sys.exit(found != [read, f"{read}, after {lost}", read, lost, read, lost])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
