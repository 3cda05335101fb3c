"""Counts the bytecode instructions that a function executes, and those of all it calls.

The count is the same on every machine and at every load, for one version of CPython; what is done
in C (protobuf, pickle, sorting) counts as one instruction, so a ratio of times guards that.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

__all__ = ["count_instructions", "without_gc"]


def count_instructions(prepare: Callable[[], Callable[[], object]]) -> Counter[CodeType]:
    """Count what the function that `prepare` returns executes, by the code that executed it.

    Both run twice and the second time counts: what happens once in a process, such as an import,
    belongs to no call, and from CPython 3.12 on a function is counted only after its first call
    under a trace. Only this thread is seen.
    """
    _count(prepare())
    return _count(prepare())


def _count(function: Callable[[], object]) -> Counter[CodeType]:
    counts: Counter[CodeType] = Counter()

    def on_call(frame: FrameType, *_: Any) -> Any:
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return on_instruction

    def on_instruction(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            counts[frame.f_code] += 1
        return on_instruction

    def traced() -> None:
        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            function()
        finally:
            sys.settrace(before)

    without_gc(traced)
    return counts


def without_gc(function: Callable[[], object]) -> None:
    """Run it while no collection can run somebody else's finalizers or callbacks."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        function()
    finally:
        if was_enabled:
            gc.enable()
