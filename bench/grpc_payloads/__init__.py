"""Large payloads over a gRPC session between two processes; `python -m bench.grpc_payloads`.

ends      the replica and the caller, without Ray and Serve
worker    a process that calls, as it is told to
"""
