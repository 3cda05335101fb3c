"""What doors cost: the lane, proofs of membership, TLS; `python -m bench.doors` prints it.

measure   the caller's side: doors take turns, beside a bare gRPC stream
server    the process that answers
"""
