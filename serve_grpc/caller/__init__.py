"""The caller's side: from `handle.remote()` to a replica and back.

call.py        one call: its state, and those who wait for it (any thread)
connection.py  the session to one replica, and its heartbeat (transport loop)
pool.py        the connections of one event loop, shared by its handles
tally.py       what a router counts
reporting.py   what was counted on a loop, told to Ray's metrics
failures.py    errors for what became of a sent call
router.py      picks a replica for each call of a deployment, or lets it wait (transport loop)
"""
