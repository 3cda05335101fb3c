"""Who may come in, whichever carrier they come by.

secrets.py       the cluster's secrets, read again when they may have changed
signed_calls.py  proofs of calls outside of a session
unproven.py      peers that have not proved themselves: how many are read from, and for how long
idle_watch.py    ends sessions whose caller says nothing
"""
