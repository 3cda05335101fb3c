"""What carries a session's messages, and what moves them.

link.py          what a session needs of a carrier: the interface
loopback.py      the carrier within one event loop
local/           the carrier within a node
grpc/            the carrier between nodes, and for other languages; the only importer of grpc
pump.py          writes what a session has queued, message after message
caller_pump.py   dials, reads and writes for one session of a caller
replica_pump.py  reads and writes for one session of a replica, and ends those that are misused
cut_off.py       ends what a task does on a link, from outside of the task
host.py          the sessions of one replica, whichever carrier they came by
counters.py      messages, bytes and frames
"""
