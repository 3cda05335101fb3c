"""Calls that fail over their news anywhere, and a replica that breaks the protocol at any frame.

Each call ends exactly once; one that nothing happened to ends as its replica said.
"""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_grpc._generated.replica_pb2 import Reply
from serve_grpc.caller.call import Call
from serve_grpc.caller.outcomes import Outcome
from serve_grpc.config import LOGGER_NAME
from tests.unit.message_of_replies import Line

NAMES = "abcdef"
CALLBACKS = ("add_item", "on_answered", "on_rejected", "takes_back")
UNKNOWN_KIND = 44

FAILURES = st.frozensets(st.tuples(st.sampled_from(CALLBACKS), st.sampled_from(NAMES)), max_size=6)
FRAMES = st.lists(
    st.tuples(st.sampled_from(("result", "item", "reject", "bad")), st.sampled_from(NAMES)),
    max_size=12,
)
MESSAGES = st.lists(FRAMES, max_size=5)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger(LOGGER_NAME), "disabled", True)
        yield


class CountedCall(Call):
    """Counts its ends."""

    ends: list[str]

    def end(self, outcome: Outcome) -> bool:
        is_first = super().end(outcome)
        if is_first:
            self.ends.append(self.fields.request_id)
        return is_first


@settings(max_examples=300, deadline=None)
@given(
    fails=FAILURES,
    fails_over_news=st.booleans(),
    streams=st.frozensets(st.sampled_from(NAMES)),
    messages=MESSAGES,
)
def test_each_call_ends_once_whoever_fails(
    fails: frozenset[tuple[str, str]],
    fails_over_news: bool,
    streams: frozenset[str],
    messages: list[list[tuple[str, str]]],
) -> None:
    async def main() -> None:
        line = Line(new_call=CountedCall)
        CountedCall.ends = []
        line.chooser.fails |= fails
        if fails_over_news:
            line.chooser.fails.add(("on_change", ""))
        for name in NAMES:
            line.send(name, stream=name in streams)
        line.leave()
        answered = set()
        for frames in messages:
            if line.connection._session is None:
                break
            replies, rejected, is_broken = [], [], False
            for what, name in frames:
                if what == "bad":
                    replies.append(Reply(id=line.ids[name], kind=UNKNOWN_KIND))
                    is_broken = True
                elif what == "reject":
                    rejected.append(line.ids[name])
                elif what == "item" and name in streams:
                    replies.append(line.item(name))
                else:
                    replies.append(line.result(name))
                    if not is_broken and not line.calls[name].done:
                        answered.add(name)
            line.hear(*replies, rejected=rejected)
        if line.connection._session is not None:
            line.connection._on_closed("the end")
        assert sorted(CountedCall.ends) == sorted(NAMES)
        for name in answered:
            if not {("add_item", name), ("on_answered", name)} & fails:
                assert line.calls[name].exception() is None
        line.connection.retire()

    asyncio.run(main())
