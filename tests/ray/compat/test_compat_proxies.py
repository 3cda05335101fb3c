"""The same ingress behind each kind of proxy. What is checked: `driver_scripts/behind_proxy.py`.

Proxy, controller and driver read their variables when they import Serve, so each kind has a Ray of
its own, on which all three transports are checked.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest

from bench.http.environment import end_haproxy, variables
from tests.ray.compat.behaviours import OURS, behaviour
from tests.ray.driver_scripts.behind_proxy import ANSWERING, GIVING_UP, leaves_stream

INGRESS = "Ingress"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def behind(run_script):
    """Gives what was seen behind a kind of proxy, by transport."""
    # Not pytest's own directory: the path of a socket may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="http-") as directory:
        kinds = {
            "by reference": {"RAY_SERVE_PROXY_USE_GRPC": "0", "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
            "grpc": {"RAY_SERVE_PROXY_USE_GRPC": "1"},
            "direct": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
            "haproxy": variables("haproxy", "default", Path(directory)),
        }

        @functools.cache
        def behind(kind):
            return json.loads(run_script("behind_proxy", env=kinds[kind], timeout_s=240))

        yield behind
        end_haproxy(Path(directory))


def assert_fine(seen, checks):
    assert {check.__name__: seen[check.__name__] for check in checks} == {
        check.__name__: "yes" for check in checks
    }


@behaviour(
    INGRESS,
    "Behind the Python proxy with `RAY_SERVE_PROXY_USE_GRPC=0` (and gRPC the handles' default): "
    "answers, streams, WebSockets, errors; disconnects and timeouts cancel the chain",
)
def test_python_proxy_by_reference(transport, behind):
    assert_fine(behind("by reference")[transport.name], [*ANSWERING, *GIVING_UP])


@behaviour(
    INGRESS,
    "Behind the Python proxy with `RAY_SERVE_PROXY_USE_GRPC=1`: "
    "answers, streams, WebSockets, errors",
)
def test_python_proxy_over_grpc(transport, behind):
    assert_fine(behind("grpc")[transport.name], ANSWERING)


@behaviour(
    INGRESS,
    "Behind the Python proxy with `RAY_SERVE_PROXY_USE_GRPC=1`, disconnects and timeouts cancel "
    "the chain",
    by_reference="only the ingress is cancelled",
    raises=AssertionError,
)
def test_python_proxy_over_grpc_cancels(transport, behind):
    assert_fine(behind("grpc")[transport.name], GIVING_UP)


@behaviour(INGRESS, "With direct ingress (`RAY_SERVE_ENABLE_DIRECT_INGRESS=1`): all of that")
def test_direct_ingress(transport, behind):
    assert_fine(behind("direct")[transport.name], [*ANSWERING, *GIVING_UP])


@behaviour(INGRESS, "Behind HAProxy (`RAY_SERVE_ENABLE_HA_PROXY=1`): all of that")
def test_haproxy(transport, behind):
    assert_fine(behind("haproxy")[transport.name], [*ANSWERING, *GIVING_UP])


@pytest.mark.parametrize("kind", ["by reference", "grpc", "direct", "haproxy"])
def test_leaving_a_stream_cancels_those_that_feed_it(behind, kind):
    # Not a row: over Serve's gRPC it is a matter of luck, see `test_compat_ingress.py`.
    assert_fine(behind(kind)[OURS], [leaves_stream])
