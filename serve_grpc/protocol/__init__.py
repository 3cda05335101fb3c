"""The session protocol, without I/O: bytes in, events out.

    session_state.py      where a session is in its life; the table of its moves
    handshake.py          who may speak to whom: versions, proofs
    caller_handshake.py   the caller's side of it, until the session is open
    replica_handshake.py  the replica's side of it, until the session is open
    keyring.py            the secrets that proofs are made with
    caller.py             the caller's side of a session
    received.py           what one message tells it
    sent_requests.py      its requests on their way, and which of them may have started
    replica.py            the replica's side of a session
    arrival.py            what one message tells it
    sent_replies.py       its replies that need more than a frame
    input_items.py        streams that are arguments, on both sides
    templates.py          numbers for what many requests share
    envelope.py           what that is, and what each request says beside it
    flow.py               credit of one stream
    status.py             errors <-> the Error message
    outbox.py             frames on their way out, batched
    wire.py               bytes -> batches, fragments of large payloads
    assembler.py          fragments -> payloads

Nothing here knows asyncio, grpc, ray, a clock or a source of randomness: they are passed in.
"""
