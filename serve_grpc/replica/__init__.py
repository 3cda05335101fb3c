"""The replica's side: from requests to the user's code and back.

invocation.py  one request on its way through
dispatcher.py  admission, routing of frames to invocations, accounting (main loop)
reporting.py   what it counts, told to Ray's metrics
executor.py    runs the user's code by Serve's rules (user's loop)
streams.py     runs its generators, item by item as credit comes
endpoint.py    starts and stops it all inside a Serve replica
"""
