"""A fleet of callers and replicas in virtual time: `python -m bench.fleet_simulation`.

Real are what the package decides with: the line, `Replicas` with its subset, the picker, peers, and
what a connection makes of a replica's news; at the replica admission and standing by. Simulated are
time, the network (no bytes are sent), Serve's control plane, and the handlers' work.

clock       an event loop whose clock jumps
replicas    slots, handlers, and what a replica tells of its load
sessions    connections whose network is the clock
callers     the line of one process
policies    other ways to choose a subset
fleet       all of them, and what becomes of calls
scenarios   how hard a fleet's life is, and the ones that are measured
measured    what is told of a run
"""
