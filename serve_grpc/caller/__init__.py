"""The caller's side: from `handle.remote()` to a replica and back.

call.py        one call: its state, and those who wait for it (any thread)
context.py     what a call takes along of its trace
making.py      makes the calls of a handle (any thread)
registry.py    the router of each deployment that handles share
router.py      picks a replica for each call of a deployment, or lets it wait (transport loop)
entrance.py    lets calls in, or refuses them
waiting.py     the calls that wait
pause.py       when a full house is looked at again
watch.py       whether Serve is still there, while calls wait for it
replicas.py    the replicas of one router, and the pick among them
connection.py  the session to one replica, and its heartbeat
penalty.py     replicas that fail their calls
complaints.py  warnings about one replica
trouble.py     why there is no session, and what the log is told of it
pool.py        the connections of one event loop, shared by its routers
placed.py      calls that Serve's own router places, over our sessions
fallback.py    calls that Serve's own router carries, too
natives.py     those of them that are under way
outcomes.py    what a call is told when it is not answered, or answered with an error
tally.py       what a router counts
reporting.py   what was counted on a loop, told to Ray's metrics
"""
