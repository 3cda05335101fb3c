"""Pickles that tell which ObjectRefs they name, whatever code runs while they are written."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray._private.worker import global_worker

from serve_grpc._serve.references import InBand
from serve_grpc.arguments import Pickled
from serve_grpc.payload import joined, refs_of
from serve_grpc.serialization import get_serializer
from tests.ray.apps.references import Box, is_known, new_actor
from tests.ray.waiting import eventually

pytestmark = pytest.mark.usefixtures("serve_instance")

NAMES = ["cloudpickle", "pickle"]
BOTH = pytest.mark.parametrize("serializer", [get_serializer(name) for name in NAMES], ids=NAMES)


class Reduced:
    """Runs `function` when it is pickled, and is what that returns when it is unpickled."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (self.function(),)


@pytest.fixture(autouse=True)
def _ray_is_left_as_it_was():
    yield
    context = global_worker.get_serialization_context()
    assert not context.is_in_band_serialization()
    assert context.get_and_clear_contained_object_refs() == set()


def named(payload):
    return set(refs_of(payload))


@BOTH
def test_refs_and_actors_are_named_once_each(serializer):
    ref, other = ray.put(1), ray.put(2)
    actor, _ = new_actor()
    payload = serializer.dump_response({"a": [ref, ref], "b": Box((other, actor))})
    refs = named(payload)
    assert refs == {ref, other, actor}
    assert ray.get(serializer.load_response(payload)["b"].content[0]) == 2
    assert serializer.dump_response({"a": {"b": [object]}}) == joined(
        serializer.dump_response({"a": {"b": [object]}})
    ), "without refs it is plain bytes"


@BOTH
def test_code_that_uses_ray_while_it_is_pickled_disturbs_nothing(serializer):
    first, inside, last = ray.put(1), ray.put(2), ray.put(3)
    puts = Reduced(lambda: cloudpickle.dumps(ray.get(ray.put([7]))))
    makes = Reduced(lambda: cloudpickle.dumps(None) if ray.put([inside]) else b"")
    payload = serializer.dump_response([first, puts, makes, last])
    assert named(payload) == {first, last}
    assert serializer.load_response(payload)[1] == [7]


@BOTH
def test_pickle_within_a_pickle_is_named_too(serializer):
    ref = ray.put(1)
    payload = serializer.dump_response([Reduced(lambda: cloudpickle.dumps([ref]))])
    assert named(payload) == {ref}


@BOTH
def test_each_of_two_pickles_one_in_the_other_names_its_own(serializer):
    outer, inner, later = ray.put(1), ray.put(2), ray.put(3)
    found = []

    def dump_another():
        found.append(named(serializer.dump_response(Box(inner))))
        return cloudpickle.dumps(None)

    payload = serializer.dump_response([outer, Reduced(dump_another), later])
    assert found == [{inner}]
    assert named(payload) == {outer, later}


def test_pickle_within_one_of_rays_leaves_ray_its_own(key):
    before, inside = ray.put(1), ray.put(2)
    name = before.hex()
    found = []

    def dump():
        found.append(named(get_serializer("cloudpickle").dump_response(Box(inside))))
        return cloudpickle.dumps(None)

    holder = ray.put([before, Reduced(dump)])
    del before
    assert found == [{inside}]
    assert is_known(name), "Ray keeps what its own object names"
    del holder
    eventually(lambda: not is_known(name))


@BOTH
def test_pickle_that_fails_leaves_nothing(serializer):
    ref = ray.put(1)
    name = ref.hex()

    def fail():
        raise OSError("no")

    with pytest.raises(TypeError, match="OSError: no") as raised:
        serializer.dump_response([ref, Reduced(fail)])
    del ref, raised
    eventually(lambda: not is_known(name))


@BOTH
def test_what_is_pickled_and_thrown_away_is_not_pinned(serializer):
    ref = ray.put(1)
    name = ref.hex()
    serializer.dump_request(([ref],), {"named": Box(ref)})
    with InBand():
        cloudpickle.dumps(ref)
    del ref
    eventually(lambda: not is_known(name))


@BOTH
def test_payload_that_is_passed_on_unopened_names_its_refs_again(serializer):
    ref = ray.put(1)
    inner = get_serializer("cloudpickle").dump_response([ref])
    payload = serializer.dump_request((Pickled(inner),), {})
    assert named(payload) == {ref}
    ((box,), _) = serializer.load_request(payload)
    assert ray.get(box[0]) == 1


@pytest.mark.parametrize("name", ["msgpack", "orjson", "noop"])
def test_other_serializers_refuse_a_ref(name):
    with pytest.raises(TypeError, match="ObjectRef"):
        get_serializer(name).dump_response(ray.put(1))
