"""The replica's side: from requests to the user's code and back.

invocation.py  one request on its way through, its stages, and how it ended
inputs.py      the streams among the arguments of a request
making.py      from what a caller sent to an invocation
dispatcher.py  routing of frames to invocations and back, accounting (main loop)
admission.py   slots: who gets one, stands by, is turned away; where one is given back (main loop)
standby.py     the queue of those that stand by, and slots that are passed on to them
executor.py    when invocations begin, are told to stop, and end (user's loop)
user_code.py   how the user's code is called, by Serve's rules
streams.py     runs its generators, item by item as credit comes
thread_call.py the user's code in a thread, which nothing can stop
failures.py    how a request that failed ends
replies.py     where items and outcomes go: on a session, or through the plain door
debug_lines.py the lines by which an operator follows one request
replica_metrics.py  what is counted, told to Ray's metrics
endpoint.py    starts and stops it all inside a Serve replica
"""
