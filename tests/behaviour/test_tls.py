"""TLS end to end, with certificates made here: both sides prove who they are, or nothing works."""

from __future__ import annotations

import asyncio

import pytest

from serve_grpc.config import Settings
from serve_grpc.routing.peer import PeerState
from tests.behaviour.serving import Chooser, connect, new_call, send, serve
from tests.certificates import Authority
from tests.ray.waiting import eventually_async


def outcome(server_settings, caller_settings):
    """ "READY" with an answered call, or the state the connection ended in."""

    async def main():
        server, port, _ = await serve(server_settings)
        chooser = Chooser()
        connection = connect(port, chooser, caller_settings)
        connection.connect()
        await eventually_async(lambda: connection.peer.state in (PeerState.READY, PeerState.LOST))
        state = connection.peer.state
        if state is PeerState.READY:
            call = new_call(chooser, b"secret")
            send(connection, call)
            await call.wait_done()
            assert call.result() == b"secret"
        await connection.aclose()
        await server.stop(0)
        return state

    return asyncio.run(main())


def test_members_of_one_authority_talk(tmp_path):
    settings = Authority(tmp_path / "ca").settings()
    assert outcome(settings, settings) is PeerState.READY


def test_caller_without_tls_is_refused(tmp_path):
    assert outcome(Authority(tmp_path / "ca").settings(), Settings()) is PeerState.LOST


def test_server_without_tls_is_not_spoken_to(tmp_path):
    assert outcome(Settings(), Authority(tmp_path / "ca").settings()) is PeerState.LOST


def test_member_of_another_authority_is_refused(tmp_path):
    ours, theirs = (Authority(tmp_path / name).settings() for name in ("ours", "theirs"))
    assert outcome(ours, theirs) is PeerState.LOST


def test_missing_file_stops_the_start(tmp_path):
    settings = Settings(use_tls=True, tls_cert_path=str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="RAY_TLS_SERVER_KEY"):
        asyncio.run(serve(settings))
    settings = Authority(tmp_path / "ca").settings()
    (tmp_path / "ca" / "cert").unlink()
    with pytest.raises(RuntimeError, match="RAY_TLS_SERVER_CERT"):
        asyncio.run(serve(settings))
