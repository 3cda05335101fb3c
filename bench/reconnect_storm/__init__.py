"""A replica that all its callers come to at once; `python -m bench.reconnect_storm` prints a table.

callers   a process with many callers of one replica, each with a pool of its own
measure   the replica that they dial, and the one that comes back after it was killed
"""
