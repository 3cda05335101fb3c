"""What takes the place of Ray Serve or of a peer where parts of the package run without a cluster.

    real_router  Serve's real router, with a controller that never answers
    serve        Serve's side: routers and replicas with the attributes that the package reads
    loopback     a caller and a replica in one process, everything real but gRPC
    echo         in the place of a dispatcher, for servers without Serve
    lone_router  in the place of a router, for a connection that is measured alone

The micro-benchmarks, the growth measurements and tests of the package share them.
"""
