"""The benchmark: serve_grpc beside what Ray Serve offers itself, in one run.

How to run it and how to read it says `README.md` in this folder.

    cli         the command `python -m bench`
    docs_page   the command that writes docs/benchmarks.md from a run

Rooms, from the one that knows least; `tests/test_architecture.py` holds who may import whom:

    results     what a run found, as JSON, and the arithmetic over it
    plan        which cases there are, who takes part in them, what has to be shown
    load        calls in a closed loop, the values that they carry, the floors without Serve
    workers     the processes that measure: which there are, how they are started and spoken with
    stand_ins   what takes the place of Ray Serve or of a peer; tests of the package use it as well
    on_serve    measuring on Serve
    http        measuring over HTTP
    ray_programs  running Ray's own benchmark programs
    two_nodes   measuring large payloads between two nodes
    growth, fleet, doors, micro, shared_memory, grpc_payloads  measuring parts of it, without Ray
    show        tables, pictures, pages and comparisons of runs
    tests       of all of this
"""
