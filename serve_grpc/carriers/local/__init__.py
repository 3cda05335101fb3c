"""A Unix socket: the carrier between processes of one user on one node.

dial.py         a link to one replica
serve.py        a replica's socket, and the links that it accepts
link.py         either end of a link: how it ends
incoming.py     the half of a link that reads
outgoing.py     the half of a link that writes, and the window that makes calls share a message
descriptors.py  descriptors on their way in
memory.py       what the two ends share beside messages
lent.py         what of it the peer has
borrowing.py    what this end has of the peer's
standstill.py   notices that the other process was stopped
forks.py        sockets that a forked child lets go of
waiter.py       what a reader waits for: it goes on in the turn in which the bytes come
paths.py        where sockets lie: a private directory, and what killed replicas left there
framing.py      frames as bytes, without a socket
"""
