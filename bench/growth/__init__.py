"""How costs grow with replicas and connections; `python -m bench.growth` prints them.

routing       picking and bookkeeping with 1 to 10,000 replicas, in one process
connections   connections and memory with 1 to 500 replicas
server        the process with that many servers
"""
