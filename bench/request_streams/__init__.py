"""Streams as arguments, against what a user does without them.

apps       what is called, and the callers, each a deployment
memory     of a process, for uploads that nobody reads
cluster    a Ray node with them on it
__main__   the command: runs each case in turns, prints a table
"""
