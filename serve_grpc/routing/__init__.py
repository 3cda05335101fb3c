"""Which replica gets a call, decided without I/O and without waiting.

    peer.py      what a caller knows of one replica
    subset.py    to which of many replicas a caller keeps sessions
    picker.py    power of two choices over the peers of a subset
    outliers.py  replicas that fail what others do well
    line.py      calls that wait, first come, first served
    retry.py     backoff of a full house, budget of repeated calls

Time and randomness are passed in.
"""
