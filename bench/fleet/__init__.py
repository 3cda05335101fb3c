"""Large fleets: what lists of thousands of replicas cost the loop that carries the calls.

real_router  Serve's real router, by itself and with ours on it, given the same lists
__main__     the command `python -m bench.fleet`
"""
