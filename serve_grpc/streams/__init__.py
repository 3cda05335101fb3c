"""Streams of items, for both sides.

credit_gates.py  where a producer waits for its consumer's credit
inbox.py         one stream among the arguments of a request, at its replica
waiters.py       who waits for news, on a loop or in a thread
"""
