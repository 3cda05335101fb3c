"""Objects of a type are found and replaced wherever pickle sees them; else nothing is copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve_grpc._serve.scanning import replace_objects


@dataclass(eq=False)
class Mark:
    """What is looked for. As applications and handles, it has no useful equality."""

    name: str
    inner: Any = None


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


def renamed(mark: Mark) -> Mark:
    return Mark(mark.name.upper())


def test_a_container_without_any_is_returned_itself() -> None:
    container = {"a": [1, {2, 3}], "b": Holder("text")}
    assert replace_objects(Mark, container, renamed) is container


def test_a_container_whose_objects_stay_is_returned_itself() -> None:
    container = ([Mark("a")], {"b": Mark("b")})
    assert replace_objects(Mark, container, lambda mark: mark) is container


def test_each_is_replaced_at_any_depth_and_the_container_stays() -> None:
    container = ([Mark("a"), (Mark("b"), 1)], {"c": Holder([Mark("c")])})
    (first, (second, number)), named = replace_objects(Mark, container, renamed)
    assert [first.name, second.name, named["c"].held[0].name, number] == ["A", "B", "C", 1]
    assert container[0][0].name == "a"


def test_one_object_in_two_places_is_still_one() -> None:
    mark = Mark("a")
    calls = []

    def once(found: Mark) -> Mark:
        calls.append(found)
        return renamed(found)

    first, second = replace_objects(Mark, [mark, mark], once)
    assert first is second
    assert calls == [mark]


def test_what_is_in_a_replaced_object_is_not_seen() -> None:
    (replaced,) = replace_objects(Mark, [Mark("outer", inner=Mark("inner"))], renamed)
    assert (replaced.name, replaced.inner) == ("OUTER", None)


def test_several_types_are_looked_for_at_once() -> None:
    kinds = (Mark, Holder)
    found = replace_objects(kinds, [Mark("a"), Holder(1)], lambda thing: type(thing).__name__)
    assert found == ["Mark", "Holder"]
