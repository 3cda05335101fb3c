#!/usr/bin/env bash
# grpc.keepalive_timeout_ms does nothing: the time that a silent peer has is that of
# grpc.http2.ping_timeout_ms, a minute.
#
# Versions: grpcio 1.85.3, CPython 3.11.7
# Expected: with keepalive_time_ms=1000 and keepalive_timeout_ms=1000 a server that is frozen is
# noticed after about two seconds; so says gRPC's keepalive guide.
# What happens: the call hangs on for 60 s (here it is given 15). With
# grpc.http2.ping_timeout_ms=1000, which the guide does not list, it fails within two seconds.
# Output seen:
#   keepalive_timeout_ms=1000:  not noticed, of 15 s
#   http2.ping_timeout_ms=1000: noticed after 2 s
#
# Ends with 0 while it is so, with 1 when it has changed, with 2 if it could not be tried.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check grpcio==1.85.3 || exit 2

cat >"$folder/program.py" <<'PROGRAM'
import os
import signal
import subprocess
import sys
import time

import grpc

PATIENCE_S = 15
SERVER = """
import concurrent.futures, time, grpc
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: time.sleep(300) or b"")
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("Service", {"Call": handler}),)
)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def noticed_after(*options: tuple[str, int]) -> float | None:
    """Seconds from the moment the server is frozen to the end of a call on it."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip()
        keepalive = ("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[*keepalive, *options]) as channel:
            call = channel.unary_unary("/Service/Call").future(b"", wait_for_ready=True)
            time.sleep(1)
            server.send_signal(signal.SIGSTOP)
            frozen = time.monotonic()
            try:
                call.exception(timeout=PATIENCE_S)
            except grpc.FutureTimeoutError:
                call.cancel()
                return None
            return time.monotonic() - frozen
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()


def told(seconds: float | None) -> str:
    return "not noticed" if seconds is None else f"noticed after {seconds:.0f} s"


documented = noticed_after(("grpc.keepalive_timeout_ms", 1000))
other = noticed_after(("grpc.http2.ping_timeout_ms", 1000))
print(f"keepalive_timeout_ms=1000:  {told(documented)}, of {PATIENCE_S} s")
print(f"http2.ping_timeout_ms=1000: {told(other)}")
sys.exit(not (documented is None and other is not None and other < 5))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py"
