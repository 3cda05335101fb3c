"""The caller's side: from `handle.remote()` to a replica and back.

call.py        one call: its state, and those who wait for it (any thread)
connection.py  the session to one replica, and its heartbeat (transport loop)
pool.py        the connections of one event loop, shared by its handles
router.py      picks a replica for each call of a deployment, or lets it wait (transport loop)
"""
