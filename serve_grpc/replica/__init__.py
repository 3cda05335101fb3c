"""The replica's side: from requests to the user's code and back.

invocation.py  one request on its way through
dispatcher.py  admission, routing of frames to invocations, accounting (main loop)
reporting.py   what it counts, told to Ray's metrics
executor.py    runs the user's code by Serve's rules (user's loop)
streams.py     runs its generators, item by item as credit comes
thread_call.py the user's code in a thread, which nothing can stop
failures.py    how a request that failed ends
endpoint.py    starts and stops it all inside a Serve replica
"""
