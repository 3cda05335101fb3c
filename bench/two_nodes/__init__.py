"""Large payloads between two nodes of a Ray cluster; `python -m bench.two_nodes`.

cluster    two nodes on this machine, with a caller on one and callees on the other
"""
