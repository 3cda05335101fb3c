"""The session protocol, without I/O: bytes in, events out.

    wire.py       bytes -> batches, fragments of large payloads
    outbox.py     frames on their way out, batched
    handshake.py  who may speak to whom: versions, proofs
    flow.py       credit of one stream
    status.py     errors <-> the Error message
    caller.py     the caller's side of a session
    replica.py    the replica's side of a session

Nothing here knows asyncio, grpc, ray, a clock or a source of randomness: they are passed in.
"""
