"""Calls in a closed loop. No Ray here.

closed_loop   N workers that each await one call before they make the next
window        what is counted of it, and the sample that becomes of it
payloads      the values that calls carry, and a check of what came back
floors        the contenders without Serve: bare grpc.aio
"""
