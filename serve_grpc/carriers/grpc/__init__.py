"""gRPC: a channel to a replica, a replica's server, and everything that knows gRPC's own rules.

dial.py          a link to one replica, and its channel
accepted.py      the replica's end of a link
serve.py         a replica's server: Session, Call, CallStream, health, reflection
plain.py         one request through `Call` or `CallStream`
status.py        how a call ends with a failure
credentials.py   TLS and the options of channels and servers
interceptors.py  what stands before the server's methods
serves_errors.py errors of Serve's own gRPC transport, as ours
enums.py         members of gRPC's enums by name
"""
