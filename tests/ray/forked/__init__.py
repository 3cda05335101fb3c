"""Workers of a test's Ray that are forked from a process which has imported Ray Serve already.

A worker needs two seconds of CPU to import Ray and Ray Serve, and the tests start a thousand of
them. Here one process per Ray imports both (`server.py`); what the raylet starts in place of Ray's
`default_worker.py` asks it for a fork (`worker.py`). The package itself and the tests' applications
are not imported before the fork: they are imported in each worker, as they are in production.

A worker of another job than the first, or whose `runtime_env` has variables for Ray or Serve, is
started the usual way, for Ray and Serve read theirs at import. The latter is spared Ray's
`setup_worker.py`, see there.
"""
