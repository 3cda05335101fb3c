"""Measuring over HTTP: wrk -> proxy -> A -> B -> C. The cases stand in `plan/http.py`.

worker        starts a process for each proxy and set of flags
measure       that process: contenders in turns against one running Serve
server        Ray, Serve and the chains of all contenders behind a proxy
chain         the application: A, the ingress, calls B, and B calls C
environment   Serve's variables for a proxy, and what it leaves behind
wrk           the load generator: its command line and its answer; `wrk.lua` is its script
"""
