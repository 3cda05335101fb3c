"""What sessions cost that carry no calls; `python -m bench.idle_sessions` prints a table.

processes   child processes, and what they use as the kernel counts it
replicas    a process with any number of replicas, each with both doors
callers     a process with any number of sessions: of one caller to many replicas, or of many to one
measure     one line of the table
"""
