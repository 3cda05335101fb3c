"""Deployments that call deployments: responses, references and handles as arguments."""

from __future__ import annotations

import asyncio

import pytest
import ray

import serve_grpc
from tests.ray.apps.composition import LINKS, links_app
from tests.ray.compat.behaviours import TRANSPORTS, behaviour, over

SECTION = "Composition"


@pytest.fixture(scope="module")
def links(deploy):
    """Handles to five deployments, of which each knows the next."""
    deploy(links_app(), "links")
    return [serve_grpc.get_deployment_handle(name, "links") for name in LINKS]


@pytest.fixture
def first(transport, links):
    return transport.over(links[0])


@pytest.fixture
def second(transport, links):
    return transport.over(links[1])


# ------------------------------------------------------------ responses as arguments


@behaviour(SECTION, "A response can be an argument of another call, by position or by name")
def test_responses_as_arguments(first, second):
    one, ten = first.add.remote(0), first.add.remote(9)
    assert second.add.remote(one, more=ten).result(timeout_s=30) == 11


@behaviour(
    SECTION, "One response can be an argument of several calls, and its result can be read as well"
)
def test_one_response_for_several_calls(first, second):
    one = first.add.remote(0)
    calls = [second.add.remote(one, more=i) for i in range(5)]
    assert [call.result(timeout_s=30) for call in calls] == [1, 2, 3, 4, 5]
    assert one.result(timeout_s=30) == 1


@pytest.mark.parametrize("other", TRANSPORTS)
@behaviour(SECTION, "A response over one transport can be an argument of a call over any other")
def test_responses_across_transports(transport, other, links, first):
    there = over(other, links[1])
    assert there.add.remote(first.add.remote(0)).result(timeout_s=30) == 2
    assert first.add.remote(there.add.remote(0)).result(timeout_s=30) == 2

    async def main():
        return await there.add.remote(first.add.remote(0))

    assert asyncio.run(main()) == 2


@behaviour(SECTION, "A call whose argument is a failed response fails with that error")
def test_failed_response_as_argument(first, second):
    with pytest.raises(KeyError, match="of the first link"):
        second.add.remote(first.fail.remote()).result(timeout_s=30)


@behaviour(SECTION, "A response over this transport goes through five deployments over all of them")
def test_chain_of_responses(transport, links, first):
    response = first.add.remote(0)
    for i, link in enumerate(links[1:]):
        response = over(TRANSPORTS[i % 3], link).add.remote(response)
    assert response.result(timeout_s=30) == 5


@behaviour(SECTION, "Five deployments call each other in a row, each hop over another transport")
def test_chain_of_deployments(transport, first):
    start = TRANSPORTS.index(transport.name)
    hops = [TRANSPORTS[(start + i) % 3] for i in range(4)]
    assert first.chain.remote(hops).result(timeout_s=30) == list(LINKS)


@behaviour(
    SECTION,
    "A caller that passes responses on does not load their values",
    serves_grpc="the caller loads each value and sends it on",
    raises=AssertionError,
)
def test_passing_on_without_loading(transport, links, tmp_path):
    app = over(TRANSPORTS[0], links[0])
    path = tmp_path / "loaded"
    seen = app.pass_on.remote(transport.name, str(path)).result(timeout_s=30)
    loaded = path.read_text().split()
    assert str(seen["there"]) in loaded
    assert str(seen["here"]) not in loaded


# ------------------------------------------------------------ references


@behaviour(SECTION, "ObjectRefs among the arguments arrive as values, nested ones as references")
def test_object_refs_as_arguments(first):
    ref = ray.put("value")
    assert first.arguments.remote(ref, x=ref).result(timeout_s=30) == [["value"], {"x": "value"}]
    [[nested], _] = first.arguments.remote([ref]).result(timeout_s=30)
    assert ray.get(nested[0], timeout=30) == "value"


@behaviour(
    SECTION,
    "`_to_object_ref()` gives a Ray ObjectRef of the result",
    serves_grpc="raises RuntimeError",
    ours="raises ObjectRefNotSupportedError; `ray.put(await response)` gives one",
    raises=RuntimeError,
)
def test_object_ref_of_a_response(first):
    assert ray.get(first.add.remote(0)._to_object_ref_sync(), timeout=30) == 1


@behaviour(
    SECTION,
    "`ray.put()` of a result can be an argument of Ray tasks and of calls over any transport",
)
def test_result_as_object_ref(first, links):
    ref = ray.put(first.add.remote(0).result(timeout_s=30))
    results = [over(name, links[1]).add.remote(ref).result(timeout_s=30) for name in TRANSPORTS]
    assert results == [2, 2, 2]


# ------------------------------------------------------------ handles as arguments


@behaviour(SECTION, "Handles inside lists and dicts reach constructors and methods and work there")
def test_nested_handles(transport, links, first):
    # The constructors of the links got theirs inside a list inside a dict.
    assert first.chain.remote([transport.name]).result(timeout_s=30) == list(LINKS[:2])
    handles = {"a": [links[1], links[2]], "b": [links[3]]}
    assert first.call_nested.remote(transport.name, handles).result(timeout_s=30) == [1, 2, 3]


@behaviour(SECTION, "A handle works in the Ray tasks and actors that it is passed to")
def test_handles_in_tasks_and_actors(transport, first):
    is_by_reference = transport.name == TRANSPORTS[0]

    def call(handle):
        assert handle.add.remote(0).by_reference is is_by_reference
        return handle.add.remote(1).result(timeout_s=30)

    class Actor:
        def __init__(self, handle):
            self.handle = handle

        async def call(self):
            return await self.handle.add.remote(2)

    task = ray.remote(num_cpus=0.01)(call).remote(first)
    actor = ray.remote(num_cpus=0.01)(Actor).remote(first)
    assert ray.get([task, actor.call.remote()], timeout=90) == [2, 3]
    ray.kill(actor)
