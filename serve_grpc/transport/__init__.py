"""Everything that touches a socket or an event loop's wake-up; the only importer of grpc.

mailbox.py      functions to another loop, one wake-up a burst
credentials.py  TLS and the options of channels and servers
stream.py       the pump of one session: read loop, writer task
client.py       a channel and a session stream to one replica
plain_call.py   one request through the plain door
doorstep.py     peers that have not proved themselves: how many, for how long
ending.py       ends a call from outside of its handler
silence.py      ends sessions whose caller says nothing
server.py       a replica's gRPC server: Session, Call, CallStream, health, reflection
"""
