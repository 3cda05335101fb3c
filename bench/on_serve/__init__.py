"""Measuring on Serve: a Ray and a Serve of the worker's own, contenders in turns.

worker     the process of one set of Serve's flags
deployed   the applications as they are deployed, once for each side or carrier
apps       the callee and the caller replica
drivers    callers that are drivers: `.result()` in threads
memory     what a caller and a callee have of it
sides      what keeps serve_grpc out of the processes that measure Serve's own contenders
"""
