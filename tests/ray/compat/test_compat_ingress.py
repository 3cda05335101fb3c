"""Ingress deployments whose inner calls go over the transport: HTTP behind Serve's proxy.

Other proxies: `test_compat_proxies.py`; gRPC: `test_compat_grpc_ingress.py`.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from ray import serve

import serve_grpc
from tests.ray.apps.ingress import fastapi_app, one_thread_app, plain_app
from tests.ray.compat.behaviours import BY_REFERENCE, behaviour
from tests.ray.visitors import TIMEOUT_HEADER, Visitor
from tests.ray.waiting import eventually

INGRESS = "Ingress"
CANCELLED = "CancelledError"


@pytest.fixture(scope="module")
def links(deploy):
    """By-reference handles to the links, by name."""
    deploy(fastapi_app(), "chain", route_prefix="/chain")
    names = ("Front", "Middle", "Back")
    handles = {n: serve_grpc.get_deployment_handle(n, "chain") for n in names}
    yield {n: handle.options(_by_reference=True) for n, handle in handles.items()}
    for handle in handles.values():
        handle.shutdown()


@pytest.fixture(scope="module")
def address(serve_instance):
    return f"127.0.0.1:{serve.context._get_global_client().http_config.port}"


@pytest.fixture
def visitor(links, address, transport):
    visitor = Visitor(address, "/chain", transport.name)
    visitor.wait_until_ready()
    return visitor


@pytest.fixture(scope="module")
def one_thread(links, deploy):
    """An ingress without threads of its own before the same chain."""
    middle = serve_grpc.get_deployment_handle("Middle", "chain")
    app = one_thread_app(middle)
    handle = deploy(app, "one-thread", route_prefix="/one-thread")
    middle.shutdown()
    return handle.options(_by_reference=True)


@pytest.fixture
def one_thread_visitor(one_thread, address, transport):
    visitor = Visitor(address, "/one-thread", transport.name)
    visitor.wait_until_ready()
    return visitor


@pytest.fixture(scope="module")
def plain(deploy):
    return deploy(plain_app(), "plain-http", route_prefix="/plain-http")


@pytest.fixture
def plain_visitor(plain, address, transport):
    visitor = Visitor(address, "/plain-http", transport.name)
    visitor.wait_until_ready()
    return visitor


def note(link, key):
    return link.watch.remote(key).result(timeout_s=20)[0]


def made(link, key):
    return link.watch.remote(key).result(timeout_s=20)[1]


def every_note(links, key):
    return [note(links[name], key) for name in ("Front", "Middle", "Back")]


# ------------------------------------------------------------ answers


@behaviour(
    INGRESS, "A FastAPI ingress answers from inner calls, in `async def` and in `def` endpoints"
)
def test_fastapi_answers(visitor):
    assert visitor.get("/echo", value="hello").json() == "hello"
    assert visitor.get("/echo-in-thread", value="hello").json() == "hello"


@behaviour(INGRESS, "A request body of 3 MB travels through inner calls")
def test_large_body(visitor):
    body = bytes(range(256)) * 12_000
    assert visitor.send("POST", "/body", content=body).content == body


@behaviour(
    INGRESS,
    "A plain HTTP handler in an app opted in by `serve_grpc.enable` answers from inner calls",
)
def test_plain_handler_answers(plain_visitor):
    assert plain_visitor.get("/echo", value="hello").text == "hello"
    answer = plain_visitor.send("POST", "/sum", content=b'{"a": [1, 2]}')
    assert answer.json() == {"echo": {"a": [1, 2]}}
    with plain_visitor.stream("/numbers", key="plain", number=4, at_once=4) as lines:
        assert list(lines) == ["0", "1", "2", "3"]


@behaviour(INGRESS, "A background task of a FastAPI response makes inner calls")
def test_background_task(visitor, links, key):
    assert visitor.get("/background", key=key).json() == key
    eventually(lambda: note(links["Back"], key) == "running")
    links["Back"].release.remote(key).result(timeout_s=20)
    eventually(lambda: every_note(links, key) == ["finished"] * 3)


@behaviour(INGRESS, "Messages of a WebSocket are answered by inner calls")
def test_websocket(visitor, links, key):
    with visitor.chat("/chat", key=key) as chat:
        for i in range(20):
            chat.send(f"message {i}")
        assert [chat.recv(timeout=20) for _ in range(20)] == [f"message {i}" for i in range(20)]
    eventually(lambda: note(links["Front"], key) == "finished")


# ------------------------------------------------------------ streams


@behaviour(INGRESS, "A streaming HTTP response passes on an inner stream's items as they are made")
def test_first_lines_come_before_the_last_is_made(visitor, links, key):
    with visitor.stream("/numbers", key=key, number=5, at_once=2) as lines:
        assert [next(lines), next(lines)] == ["0", "1"]
        assert made(links["Back"], key) == 2
        links["Back"].release.remote(key).result(timeout_s=20)
        assert list(lines) == ["2", "3", "4"]


AHEAD = "the inner stream runs ahead"


@behaviour(
    INGRESS,
    "A handler that sends slowly pauses the inner stream that feeds its response",
    by_reference=AHEAD,
    serves_grpc=AHEAD,
    raises=AssertionError,
)
def test_slow_response_pauses_the_inner_stream(visitor, links, key):
    def has_stopped():
        before = made(links["Back"], key)
        visitor.get("/echo", value="meanwhile")
        return before == made(links["Back"], key)

    with visitor.stream("/slowly", key=key, number=2_500) as lines:
        assert next(lines) == "0"
        eventually(has_stopped, timeout_s=30)
        ahead = made(links["Back"], key)
        links["Front"].release.remote(key).result(timeout_s=20)
        assert list(lines) == [str(i) for i in range(1, 2_500)]
    assert ahead < 1_200  # two hops, of which each has a window


# ------------------------------------------------------------ giving up


@behaviour(INGRESS, "A client that disconnects cancels the whole chain of calls")
def test_disconnect_cancels_the_chain(visitor, links, key):
    with visitor.asking("/hold", key=key):
        eventually(lambda: every_note(links, key) == ["running"] * 3)
    eventually(lambda: every_note(links, key) == [CANCELLED] * 3)


@behaviour(
    INGRESS,
    "A client that leaves a streaming response cancels the streams that feed it",
    serves_grpc="some of the inner streams run on",
    raises=AssertionError,
)
def test_disconnect_cancels_streams(visitor, links, key, transport):
    # Serve's gRPC forgets one in three to one in ten; by reference it was one in some hundreds.
    number = 5 if transport.name == BY_REFERENCE else 50
    keys = [f"{key}-{i}" for i in range(number)]
    with contextlib.ExitStack() as stack:
        for k in keys:
            lines = stack.enter_context(visitor.stream("/numbers", key=k, number=5, at_once=2))
            assert next(lines) == "0"
    eventually(lambda: {note(links["Back"], k) for k in keys} == {CANCELLED})


@behaviour(
    INGRESS, "A client that disconnects cancels calls that the handler made and does not await"
)
def test_disconnect_cancels_scattered_calls(visitor, links, key):
    number = 30
    keys = [f"{key}-{i}" for i in range(number)]
    with visitor.asking("/scatter", key=key, number=number):
        eventually(lambda: [note(links["Back"], k) for k in keys] == ["running"] * number)
    eventually(lambda: note(links["Front"], key) == CANCELLED)
    eventually(lambda: [note(links["Back"], k) for k in keys] == [CANCELLED] * number)


@behaviour(INGRESS, "The same, in a replica that does everything in one thread")
def test_disconnect_cancels_scattered_calls_in_one_thread(
    one_thread_visitor, one_thread, links, key
):
    keys = [f"{key}-{i}" for i in range(5)]
    with one_thread_visitor.asking("/scatter", key=key, number=len(keys)):
        eventually(lambda: [note(links["Back"], k) for k in keys] == ["running"] * len(keys))
    eventually(lambda: note(one_thread, key) == CANCELLED)
    eventually(lambda: [note(links["Back"], k) for k in keys] == [CANCELLED] * len(keys))


@behaviour(
    INGRESS, "A client that disconnects from a `def` endpoint cancels the calls it waits for"
)
def test_disconnect_cancels_calls_of_a_thread(visitor, links, key):
    with visitor.asking("/hold-in-thread", key=key):
        eventually(lambda: note(links["Back"], key) == "running")
    eventually(lambda: every_note(links, key)[1:] == [CANCELLED] * 2)


@behaviour(INGRESS, "A request timeout answers 408 and cancels the inner calls")
def test_timeout(visitor, links, key):
    for timeout_s in (1, 5, 25):
        headers = {TIMEOUT_HEADER: str(timeout_s)}
        assert visitor.get("/hold", headers=headers, key=key).status_code == 408
        eventually(lambda: "running" not in every_note(links, key))
        if "unknown" not in every_note(links, key):  # else it ended before it had arrived
            break
    assert every_note(links, key) == [CANCELLED] * 3


# ------------------------------------------------------------ errors


@behaviour(INGRESS, "An inner deployment's exception answers 500")
def test_user_error(visitor, plain_visitor):
    answer = visitor.get("/fail", kind="ValueError")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    answer = plain_visitor.get("/fail", kind="ValueError")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert visitor.get("/echo", value="after").json() == "after"


@behaviour(INGRESS, "FastAPI's exception handler of a type gets the inner deployment's exception")
def test_exception_handler(visitor):
    answer = visitor.get("/fail", kind="Detailed")
    assert (answer.status_code, answer.json()) == (422, {"code": 42})


def full_house(visitor, links, key, is_direct):
    """Status codes of five requests, where one may run and one may wait."""
    with ThreadPoolExecutor(5) as pool:

        def ask():
            return pool.submit(visitor.get, "/squeeze", key=key, is_direct=is_direct)

        answers = [ask()]
        try:
            eventually(lambda: note(links["Back"], key) == "running")
            answers += [ask() for _ in range(4)]
            eventually(lambda: sum(a.done() for a in answers) == 3)
        finally:
            links["Back"].release.remote(key).result(timeout_s=20)
        return sorted(answer.result().status_code for answer in answers)


@behaviour(INGRESS, "A full queue before an inner deployment answers 503")
def test_back_pressure(visitor, links, key):
    assert full_house(visitor, links, key, True) == [200, 200, 503, 503, 503]


@behaviour(INGRESS, "A full queue further inside answers 503 too")
def test_back_pressure_from_further_inside(visitor, links, key):
    assert full_house(visitor, links, key, False) == [200, 200, 503, 503, 503]


# ------------------------------------------------------------ what travels along


@behaviour(INGRESS, "`X-Request-ID` is the request id of every call of the chain, and is sent back")
def test_request_id(visitor, key):
    answer = visitor.get("/request", headers={"X-Request-ID": key})
    assert [link["request_id"] for link in answer.json()] == [key] * 3
    assert answer.headers["x-request-id"] == key
    made_up = visitor.get("/request")
    assert {link["request_id"] for link in made_up.json()} == {made_up.headers["x-request-id"]}


@behaviour(
    INGRESS, "The model and the session in the request's headers can be passed on to inner calls"
)
def test_model_and_session(visitor):
    headers = {"serve_multiplexed_model_id": "model-7", "x-session-id": "session-9"}
    links = visitor.get("/request", headers=headers).json()
    assert [(link["model"], link["session"]) for link in links] == [("model-7", "session-9")] * 3
