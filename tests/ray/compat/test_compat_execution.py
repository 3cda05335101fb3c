"""How Serve runs the user's code: `async def`, `def`, generators, threads, loops, flags."""

from __future__ import annotations

import asyncio
import threading

import pytest
import ray
from ray.serve.exceptions import BackPressureError

import serve_grpc
from tests.ray.apps.execution import FLAGS, execution_app
from tests.ray.apps.gated import Board
from tests.ray.compat.behaviours import BY_REFERENCE, behaviour
from tests.ray.waiting import eventually

SECTION = "Execution"
APP = "execution"


@pytest.fixture(scope="module")
def app(deploy):
    """Handles by the name of the deployment."""
    deploy(execution_app(), APP)
    names = (*FLAGS, "pair", "full")
    return {name: serve_grpc.get_deployment_handle(name, APP) for name in names}


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path)
    yield board
    board.release()


def ran(handle, method, calls, seconds):
    """[start, end, pid] of so many calls made at once."""
    handle.replica.remote().result(timeout_s=30)
    responses = [getattr(handle, method).remote(seconds) for _ in range(calls)]
    return [response.result(timeout_s=60) for response in responses]


def most_at_once(runs):
    """The largest number of runs that overlap."""
    return max(sum(start <= at < end for start, end, _ in runs) for at, _, _ in runs)


def by_process(runs):
    """The runs of each process."""
    return {pid: [run for run in runs if run[2] == pid] for _, _, pid in runs}


# ------------------------------------------------------------ async def and def


@behaviour(SECTION, "Five `async def` calls that wait take as long as one")
def test_async_handlers_run_side_by_side(transport, app):
    assert most_at_once(ran(transport.over(app["threads"]), "sleep", 5, 0.5)) == 5


@behaviour(SECTION, "Five `async def` calls that block run one after the other")
def test_blocking_async_handlers_run_one_by_one(transport, app):
    assert most_at_once(ran(transport.over(app["threads"]), "sleep_blocking", 5, 0.1)) == 1


@behaviour(SECTION, "Five `def` calls run in threads and take as long as one")
def test_def_handlers_run_in_threads(transport, app):
    handle = transport.over(app["threads"])
    assert most_at_once(ran(handle, "sleep_in_def", 5, 0.5)) == 5
    assert handle.thread.remote().result(timeout_s=20) == [False, []]


@behaviour(
    SECTION,
    "With `RAY_SERVE_RUN_SYNC_IN_THREADPOOL=0`, `def` calls run one after the other on the event "
    "loop, and Serve warns once",
)
def test_def_handlers_on_the_loop(transport, app):
    handle = transport.over(app["in_loop"])
    assert most_at_once(ran(handle, "sleep_in_def", 5, 0.1)) == 1
    is_on_loop, warned = handle.thread.remote().result(timeout_s=20)
    assert is_on_loop
    assert len(warned) == 1
    assert "RAY_SERVE_RUN_SYNC_IN_THREADPOOL=0" in warned[0]


@pytest.mark.parametrize("callee", FLAGS)
@pytest.mark.parametrize("caller", ["in_loop", "one_thread", "throughput"])
@behaviour(
    SECTION,
    "Calls, streams and errors pass between replicas with any of "
    "`RAY_SERVE_RUN_SYNC_IN_THREADPOOL=0`, `RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0`, "
    "`RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0`, `RAY_SERVE_THROUGHPUT_OPTIMIZED=1`",
)
def test_every_flag(transport, app, caller, callee):
    if transport.name == BY_REFERENCE and caller == callee:
        pytest.skip("of some hundred calls of an actor to itself, Ray leaves one unanswered")
    response = app[caller].relay.remote(transport.name, app[callee])
    assert response.result(timeout_s=60) == [1, 3, True]


# ------------------------------------------------------------ max_ongoing_requests


@pytest.mark.parametrize(
    ("method", "at_once"), [("sleep", 2), ("sleep_blocking", 1), ("sleep_in_def", 2)]
)
@behaviour(
    SECTION,
    "Each replica runs at most `max_ongoing_requests` at once, `async def`, blocking or `def`; "
    "two replicas answer from two processes",
)
def test_max_ongoing_requests(transport, app, method, at_once):
    runs = ran(transport.over(app["pair"]), method, 8, 0.2)
    processes = by_process(runs)
    assert len(processes) == 2
    assert [most_at_once(part) for part in processes.values()] == [at_once] * 2
    assert most_at_once(runs) > at_once


# ------------------------------------------------------------ code that blocks


def replica_actor(handle):
    replica_id = handle.replica.remote().result(timeout_s=20)["replica_id"]
    named = ray.util.list_named_actors(all_namespaces=True)
    return next(
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in named
        if replica_id in actor["name"]
    )


@behaviour(
    SECTION,
    "While `async def` code blocks its event loop, the replica's health check and queue length "
    "still answer",
)
def test_health_checks_while_code_blocks(transport, app, board):
    handle = transport.over(app["full"])
    actor = replica_actor(handle)
    blocked = handle.block.remote(board.path)
    eventually(lambda: board.count("start") == 1)
    ray.get(actor.check_health.remote(), timeout=20)
    assert ray.get(actor.get_num_ongoing_requests.remote(), timeout=20) == 1
    board.release()
    blocked.result(timeout_s=20)


@behaviour(SECTION, "A full replica whose code blocks still turns other callers away")
def test_rejections_while_code_blocks(transport, app, board):
    handle = transport.over(app["full"])
    blocked = handle.block.remote(board.path)
    eventually(lambda: board.count("start") == 1)
    # A handle that went through pickle has a router of its own, which knows nothing of that call.
    other = ray.cloudpickle.loads(ray.cloudpickle.dumps(handle))
    waiting = other.replica.remote()

    def is_turned_away():
        response = other.replica.remote()
        try:
            response.result(timeout_s=0.3)
        except BackPressureError:
            return True
        except TimeoutError:
            response.cancel()
        return False

    eventually(is_turned_away)
    board.release()
    blocked.result(timeout_s=20)
    waiting.result(timeout_s=20)


@behaviour(SECTION, "A replica whose code blocks is not taken for dead: it gets further calls")
def test_calls_to_a_replica_that_blocks(transport, app, board):
    handle = transport.over(app["in_loop"])
    actor = replica_actor(handle)
    calling = app["threads"].call_while_blocked.remote(
        transport.name, app["in_loop"], board.path, 1.0
    )
    ongoing = actor.get_num_ongoing_requests
    eventually(lambda: ray.get(ongoing.remote(), timeout=20) == 2)
    board.release()
    assert len(set(calling.result(timeout_s=30))) == 1


@behaviour(SECTION, "A caller that blocks its event loop stalls only itself")
def test_a_blocking_caller(transport, app, board):
    caller, callee = app["threads"], transport.over(app["full"])
    calling = caller.call_and_block.remote(transport.name, app["full"], board.path)
    eventually(lambda: board.count("start") == 1)
    # The callee runs one request at a time; the blocked caller's is over.
    for _ in range(3):
        callee.replica.remote().result(timeout_s=20)
    board.release()
    assert len(calling.result(timeout_s=20)) == 3


@behaviour(SECTION, "An event loop that blocks does not hold up calls of the process's threads")
def test_a_blocked_loop_beside_a_thread(transport, app):
    handle = transport.over(app["threads"])
    is_done = threading.Event()

    def call_in_thread():
        handle.replica.remote().result(timeout_s=30)
        is_done.set()

    async def main():
        response = handle.replica.remote()
        threading.Thread(target=call_in_thread).start()
        assert is_done.wait(30)  # blocks this loop
        return await response

    assert asyncio.run(main())["deployment"] == "threads"


# ------------------------------------------------------------ generators


@pytest.mark.parametrize("method", ["items", "items_in_def"])
@behaviour(
    SECTION, "Items of a generator, `async def` or `def`, arrive in order, each when it is made"
)
def test_generators(transport, app, board, method):
    handle = transport.over(app["threads"]).options(method_name=method, stream=True)
    stream = iter(handle.remote(board.path, 5))
    assert next(stream) == 0
    board.release()
    assert list(stream) == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "on_loop"), [("threads", False), ("in_loop", True)])
@behaviour(SECTION, "A `def` generator runs in a thread, or on the loop, as the flag says")
def test_where_def_generators_run(transport, app, name, on_loop):
    handle = transport.over(app[name]).options(method_name="where", stream=True)
    assert list(handle.remote(3)) == [on_loop] * 3


@behaviour(SECTION, "A generator is consumed by `async for` while other calls go on")
def test_async_for(transport, app, board):
    async def main():
        handle = transport.over(app["threads"])
        stream = handle.options(method_name="items", stream=True).remote(board.path, 5)
        items = [await stream.__anext__()]
        await asyncio.gather(*(handle.replica.remote() for _ in range(5)))
        board.release()
        items += [item async for item in stream]
        return items

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


# ------------------------------------------------------------ around the calls


@pytest.mark.parametrize(("name", "configured_with"), [("threads", [5, 1]), ("full", [1, 2])])
@behaviour(
    SECTION,
    "The constructor, `def` or `async def`, and `reconfigure` run before the first call",
)
def test_constructor_and_reconfigure(transport, app, name, configured_with):
    handle = transport.over(app[name])
    assert handle.configuration.remote().result(timeout_s=20) == configured_with


@behaviour(
    SECTION,
    "Request id, application, route and model id are in the request context, also in threads",
)
def test_request_context(transport, app):
    handle = transport.over(app["threads"]).options(multiplexed_model_id="m")
    response = handle.request.remote()
    seen = response.result(timeout_s=20)
    assert seen.pop("request_id") == response.request_id
    assert seen == {"app_name": APP, "route": "", "model_id": "m", "in_thread": "m"}


@behaviour(SECTION, "`serve.get_replica_context()` tells a handler which replica it is")
def test_replica_context(transport, app):
    handle = transport.over(app["pair"])

    async def main():
        seen = await asyncio.gather(*(handle.replica.remote() for _ in range(20)))
        return {(one["deployment"], one["replica_id"], one["pid"]) for one in seen}

    async def until_both():
        found = set()
        while len(found) < 2:
            found |= await main()
        return found

    found = asyncio.run(asyncio.wait_for(until_both(), 30))
    assert {name for name, _, _ in found} == {"pair"}
    assert len({replica_id for _, replica_id, _ in found}) == 2
