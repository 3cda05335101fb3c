"""ObjectRefs and handles of actors inside of what calls by value carry: as by reference, an object
lives while somebody holds it, and not longer."""

from __future__ import annotations

import asyncio
import gc
import os

import pytest
import ray
from ray.serve.exceptions import RequestCancelledError

from serve_grpc.errors import DeadlineExceededError, MessageTooLargeError
from tests.faults.memory import Growth
from tests.ray.apps.references import (
    LENGTH,
    Box,
    BoxError,
    is_known,
    known,
    large,
    lending_app,
    new_actor,
    value_of,
)
from tests.ray.waiting import eventually

FREED_S = 30.0


@pytest.fixture(scope="module")
def first(deploy):
    return deploy(lending_app(), "lending")


@pytest.fixture(scope="module")
def last(first):
    import serve_grpc

    return serve_grpc.get_deployment_handle("Last", "lending").options(_by_reference=False)


def is_freed(ref_hex):
    """Whether this process, the owner, knows of nobody that holds the object."""
    return not is_known(ref_hex)


def is_over(pid):
    gc.collect()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def call(handle, method, *args, **kwargs):
    return handle.options(method_name=method).remote(*args, **kwargs).result(timeout_s=30)


def read(box):
    return asyncio.run(value_of(box))


SHAPES = {
    "list": lambda thing: ([thing],),
    "dict of lists": lambda thing: ({"a": [thing]},),
    "object": lambda thing: (Box(thing),),
    "object in a tuple": lambda thing: ((Box([thing]),),),
}

# ------------------------------------------------------------ arguments


@pytest.mark.parametrize("serializer", ["cloudpickle", "pickle"])
@pytest.mark.parametrize("shape", SHAPES)
def test_object_of_an_argument_is_freed(first, shape, serializer):
    ref = large()
    name = ref.hex()
    handle = first.options(request_serialization=serializer)
    assert call(handle, "read", *SHAPES[shape](ref)) == LENGTH
    assert is_known(name)
    del ref
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_object_of_a_keyword_argument_is_freed(first):
    ref = large()
    name = ref.hex()
    assert call(first, "read", box=[ref]) == LENGTH
    del ref
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


@pytest.mark.parametrize("serializer", ["cloudpickle", "pickle"])
def test_actor_of_an_argument_ends(first, serializer):
    actor, pid = new_actor()
    assert call(first.options(request_serialization=serializer), "read", [actor]) == pid
    del actor
    eventually(lambda: is_over(pid), timeout_s=FREED_S)


@pytest.mark.parametrize("is_direct", [True, False], ids=["called", "called in turn"])
def test_receiver_that_keeps_a_ref_uses_it_after_the_sender_let_go(first, last, key, is_direct):
    ref = large()
    name = ref.hex()
    args = (first, "keep") if is_direct else (first, "pass_on", "keep")
    holder = first if is_direct else last
    assert call(*args, key, [ref]) == LENGTH
    del ref
    for _ in range(20):  # each gives counts and sessions time to forget it wrongly
        assert call(holder, "use", key) == LENGTH
        gc.collect()
    assert is_known(name)
    call(holder, "drop", key)
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_receiver_that_keeps_an_actor_uses_it_after_the_sender_let_go(first, last, key):
    actor, pid = new_actor()
    assert call(first, "pass_on", "keep", key, [actor]) == pid
    del actor
    for _ in range(20):
        assert call(last, "use", key) == pid
        gc.collect()
    call(last, "drop", key)
    eventually(lambda: is_over(pid), timeout_s=FREED_S)


def test_object_of_a_stream_s_argument_is_freed(first):
    ref = large()
    name = ref.hex()
    stream = first.options(method_name="read_items", stream=True).remote([ref])
    del ref
    assert list(stream) == [LENGTH] * 3
    del stream
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


# ------------------------------------------------------------ calls that fail


def test_object_of_a_call_that_fails_is_freed(first):
    ref = large()
    name = ref.hex()
    with pytest.raises(ValueError, match=str(LENGTH)) as raised:
        call(first, "fail", [ref])
    del ref, raised
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_object_of_a_cancelled_call_is_freed(first, tmp_path):
    ref = large()
    name = ref.hex()
    response = first.hang.remote([ref], str(tmp_path / "hangs"))
    del ref
    eventually((tmp_path / "hangs").exists)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=20)
    del response
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_object_of_a_call_past_its_deadline_is_freed(first, tmp_path):
    ref = large()
    name = ref.hex()
    with pytest.raises(DeadlineExceededError):
        call(first.options(timeout_s=1), "hang", [ref], str(tmp_path / "hangs"))
    del ref
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_abandoned_stream_lets_go_of_its_argument(first):
    ref = large()
    name = ref.hex()
    stream = first.options(method_name="read_items", stream=True).remote([ref])
    del ref
    assert next(stream) == LENGTH
    del stream
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_code_that_runs_on_after_its_cancel_still_has_what_it_was_lent(first, tmp_path):
    ref = large()
    name, path = ref.hex(), tmp_path / "read"
    response = first.read_late.remote([ref], str(path))
    del ref
    eventually(tmp_path.joinpath("read.started").exists)
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=20)
    del response
    for _ in range(3):  # so long the caller asks whether it still runs
        call(first, "known")
        gc.collect()
    tmp_path.joinpath("read.go").touch()
    eventually(path.exists)
    assert path.read_text() == str(LENGTH)
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_call_that_is_too_large_lets_go(first):
    ref = large()
    name = ref.hex()
    with pytest.raises(MessageTooLargeError) as raised:
        call(first, "read", [ref, bytes(5_000_000)])
    del ref, raised
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


# ------------------------------------------------------------ results


def known_at(handle):
    gc.collect()  # an exception and its traceback are a circle
    return set(call(handle, "known"))


@pytest.mark.parametrize("serializer", ["cloudpickle", "pickle"])
def test_object_of_a_result_lives_while_it_is_held_and_not_longer(first, serializer):
    result = call(first.options(response_serialization=serializer), "give")
    (ref,) = result["box"]
    name = ref.hex()
    for _ in range(20):
        assert read(result) == LENGTH
        assert name in known_at(first)
    del result, ref
    eventually(lambda: name not in known_at(first) and is_freed(name), timeout_s=FREED_S)


def test_actor_of_a_result_lives_while_it_is_held_and_not_longer(first):
    result = call(first, "give", "actor")
    pid = read(result)
    for _ in range(20):
        assert read(result) == pid
        gc.collect()
    del result
    eventually(lambda: is_over(pid), timeout_s=FREED_S)


def test_object_of_a_large_result_is_freed(first):
    result = call(first, "give_large")
    name = result[0].hex()
    assert read(result) == LENGTH
    del result
    eventually(lambda: name not in known_at(first), timeout_s=FREED_S)


@pytest.mark.parametrize("method", ["give_items", "give_items_in_thread"])
def test_objects_of_items_are_freed_as_they_are_dropped(first, method):
    before = known_at(first)
    stream = first.options(method_name=method, stream=True).remote(5)
    names = []
    for item in stream:
        assert read(item) == LENGTH
        names.append(item[0].hex())
    eventually(lambda: not known_at(first) & set(names[:-1]), timeout_s=FREED_S)
    assert names[-1] in known_at(first)
    del item, stream
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


@pytest.mark.parametrize("is_closed", [True, False], ids=["broken off", "never read"])
def test_objects_of_an_abandoned_stream_are_freed(first, is_closed):
    before = known_at(first)
    stream = first.options(method_name="give_items", stream=True).remote(100)
    if is_closed:
        item = next(stream)
        name = item[0].hex()
        del stream
        eventually(lambda: known_at(first) - before <= {name}, timeout_s=FREED_S)
        assert read(item) == LENGTH
        del item
    else:
        eventually(lambda: known_at(first) - before, timeout_s=FREED_S)
        del stream
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


def test_object_of_a_result_that_nobody_reads_is_freed(first):
    before = known_at(first)
    response = first.give.remote()
    eventually(lambda: known_at(first) - before, timeout_s=FREED_S)
    del response
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


def test_object_of_an_exception_is_freed(first):
    before = known_at(first)
    with pytest.raises(BoxError) as raised:
        call(first, "raise_box")
    box = raised.value.cause.content
    del raised
    for _ in range(20):
        assert read(box) == LENGTH
        assert known_at(first) - before == {box[0].hex()}
    del box
    eventually(lambda: known_at(first) <= before, timeout_s=FREED_S)


def test_ref_that_comes_back_to_its_owner_is_freed(first, key):
    ref = large()
    name = ref.hex()
    call(first, "keep", key, [ref])
    (back,) = call(first, "give_own", key)
    assert back == ref
    del ref
    call(first, "drop", key)
    assert len(ray.get(back, timeout=20)) == LENGTH
    del back
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


def test_result_of_a_called_deployment_s_own_call_is_passed_back(first, last):
    result = call(first, "pass_on", "give")
    name = result["box"][0].hex()
    for _ in range(20):
        assert read(result) == LENGTH
        assert name in known_at(last)
    del result
    eventually(lambda: name not in known_at(last) | known_at(first), timeout_s=FREED_S)


def test_response_that_is_passed_on_unopened_lends_its_refs_on(first, last, key):
    before = known_at(last)
    assert call(first, "keep", key, last.give.remote()) == LENGTH
    for _ in range(20):
        assert call(first, "use", key) == LENGTH
        gc.collect()
    call(first, "drop", key)
    eventually(lambda: known_at(last) <= before, timeout_s=FREED_S)
    assert call(first, "pass_unopened", "") == LENGTH
    eventually(lambda: known_at(last) <= before, timeout_s=FREED_S)


# ------------------------------------------------------------ calls to chosen replicas


def test_object_of_a_broadcast_is_freed(first):
    ref = large()
    name = ref.hex()
    assert first.broadcast("read", [ref]).results(timeout_s=30) == [LENGTH]
    del ref
    eventually(lambda: is_freed(name), timeout_s=FREED_S)


# ------------------------------------------------------------ nothing is left


def test_many_calls_leave_nothing_in_any_table(first):
    call(first, "give")
    eventually(lambda: any(lender._actor for lender in lenders()))  # that actor stays known
    before, at_home = known_at(first), known()
    refs = [large() for _ in range(10)]
    # Not read: of thousands of refs that an actor awaits at once, Ray forgets one now and then.
    responses = [first.take.remote([refs[i % 10]]) for i in range(500)]
    assert len([r.result(timeout_s=60) for r in responses]) == 500
    boxes = [r.result(timeout_s=60) for r in [first.give.remote() for _ in range(500)]]
    assert len(known_at(first) - before) >= 500
    del refs, responses, boxes
    eventually(lambda: known_at(first) <= before, timeout_s=60)
    # Serve's own questions to its controller come and go, and the replica's actor is known now.
    eventually(lambda: len(known() - at_home) < 10, timeout_s=60)
    assert call(first, "lent").startswith("<Desk 0 replies")
    assert {repr(lender) for lender in lenders()} <= {
        "<Lender 0 calls to settle, 0 replies to fetch>"
    }


@pytest.mark.parametrize("way", ["argument", "result"])
def test_actor_that_many_calls_name_costs_no_memory_for_good(first, key, way):
    actor, _ = new_actor()
    call(first, "make", key)
    replica = call(first, "take", [])

    def call_often():
        for _ in range(40):
            if way == "argument":
                responses = [first.take.remote([actor]) for _ in range(25)]
            else:
                responses = [first.give_own.remote(key) for _ in range(25)]
            for response in responses:
                response.result(timeout_s=60)
        eventually(lambda: not any(lender._exchanging for lender in lenders()))

    call_often()
    growth = Growth((os.getpid(), replica))
    call_often()
    growth.look()
    assert growth.most_mib < 8
    call(first, "drop", key)


def lenders():
    from serve_grpc.caller.lending import Lender

    return [thing for thing in gc.get_objects() if type(thing) is Lender]
