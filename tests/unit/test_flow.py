"""Credit of a stream: what a producer may send, and when its consumer gives some back."""

from __future__ import annotations

import pytest

from serve_grpc.protocol.flow import ConsumerWindow, ProducerWindow


@pytest.mark.parametrize(("items", "bytes_"), [(0, 10), (10, 0), (0, 0), (-1, 5)])
def test_a_window_without_items_or_bytes_is_closed(items: int, bytes_: int) -> None:
    assert not ProducerWindow(items, bytes_).is_open


def test_items_close_a_window() -> None:
    window = ProducerWindow(2, 1000)
    window.spend(1)
    assert window.is_open
    window.spend(1)
    assert not window.is_open


def test_one_item_larger_than_the_window_passes_and_closes_it() -> None:
    window = ProducerWindow(10, 100)
    window.spend(1000)
    assert not window.is_open


def test_a_grant_opens_a_window_only_when_what_was_overdrawn_is_paid() -> None:
    window = ProducerWindow(10, 100)
    window.spend(1000)
    window.grant(1, 900)
    assert not window.is_open
    window.grant(0, 1)
    assert window.is_open


def test_nothing_is_given_back_before_half_a_window_is_due() -> None:
    window = ConsumerWindow(10, 1000)
    assert [window.took(1) for _ in range(5)] == [None] * 4 + [(5, 5)]


def test_half_of_the_bytes_is_enough() -> None:
    window = ConsumerWindow(10, 1000)
    assert window.took(499) is None
    assert window.took(1) == (2, 500)
    assert window.took(10_000) == (1, 10_000)


def test_what_was_given_back_is_not_given_twice() -> None:
    window = ConsumerWindow(4, 1000)
    granted = [window.took(7) for _ in range(8)]
    assert granted == [None, (2, 14)] * 4


@pytest.mark.parametrize(("items", "bytes_"), [(1, 1), (1, 1000), (2, 1), (3, 2)])
def test_the_smallest_windows_give_everything_back_at_once(items: int, bytes_: int) -> None:
    assert ConsumerWindow(items, bytes_).took(5) == (1, 5)


def test_windows_show_what_is_left() -> None:
    assert repr(ProducerWindow(3, 40)) == "<ProducerWindow 3 items, 40 bytes left>"
