"""The cluster's secret on Rays of their own, with and without Ray's token: see the script."""

from __future__ import annotations

import json
import secrets

import pytest

import serve_grpc
from serve_grpc.entrance.secrets import FRESH_S

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_made_once_rotated_kept_and_never_shown(run_script, mode):
    env = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    seen = json.loads(run_script("rotated_secret", env=env, timeout_s=350).splitlines()[-1])
    print(seen)
    assert seen["token"] is (mode == "token")
    assert seen["places"] > 20
    assert seen["calls"] > 100
    assert seen["failed"] == 0
    assert seen["worthless_after_s"] <= FRESH_S + 3  # the peer's own tries take their time


def test_without_a_cluster_there_is_nothing_to_rotate(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match=r"ray\.init"):
        serve_grpc.rotate_secret()
