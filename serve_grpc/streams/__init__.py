"""Streams of items, for both sides.

credit_gates.py  where a producer waits for its consumer's credit
"""
