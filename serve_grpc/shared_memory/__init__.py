"""Shared memory for large payloads between two processes of one node.

segments        one piece of it: made and sealed here, or received and checked
memory_limits   how much memory this process may use, and how much is left
pool            the sender: warm ranges in few segments, within a bound
maker           the sender: new memory, at once or made by a thread
ranges          the sender: what a pool gives, for one piece of a payload at a time
size_classes    the sizes that ranges have
section         the lock of the pool
pieces          the sender: pieces of payloads in ranges, for as long as they are referred to
process         the pool of this process, and the links it is used over
blocks          large pieces of memory that nobody else sees, in huge pages
copying         copies without the interpreter's lock
mappings        the receiver: private views on ranges of a peer's segments
borrowed        one such segment, and its ranges, which may be lent on
untouched       the receiver: ranges that nobody has written to, to be lent on or back
unmapped        the receiver: copies of ranges in segments that it cannot map
private_pages   the receiver: private copies of a mapping's pages

The room knows neither sessions nor sockets: who uses it carries descriptors, numbers and releases.
"""
