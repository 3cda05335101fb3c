"""CPU time of the parts of a call, with pytest-benchmark: `python -m pytest bench/micro`.

pair       the two session machines, open, and batches for them
conftest   the `cost` fixture, and the table at the end
test_*     a part each: codec, sessions, pick, accounting, execution, hops, the whole path
"""
