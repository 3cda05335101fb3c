"""The caller's side: from `handle.remote()` to a replica and back.

A call, and its way:
    call.py        what was asked, what came back and who waits for it (any thread)
    delivery.py    the way of one call to a replica and back; ends once, in `Delivery.end`
    outcomes.py    what ended a call, as data
    raising.py     the exception that a consumer makes of it
    choosing.py    what a delivery asks of who chose its replica, or has it meanwhile
    lending.py     ObjectRefs that calls lend and borrow

Streams among its arguments:
    inputs.py      those of one call, from where items are made to the session that has the call
    input_way.py   that session, as they see it
    sources.py     the caller's generators, each run where it belongs (their loops and threads)
    item_writer.py what they yield and raise, as an input has to say it
    relays.py      responses, and the caller's own inputs, that are handed on
    misplaced.py   streams inside of other arguments, where none can be

Making a call (the thread of `remote()`):
    making.py      the calls of one handle
    context.py     what a call takes along of its trace
    registry.py    the router of each deployment that handles share

Choosing where it goes (the router's loop):
    router.py      follows the replicas of a deployment, and takes its new calls
    feed.py        what the control plane has told of the deployment
    replica_set.py the replicas that it lists, and what they have in common
    admission.py   lets calls in, or refuses them
    line.py        our own choice of a replica, and the calls that wait for one
    bound.py       calls that may go to one replica only
    waking.py      what wakes them where no news would
    replicas.py    the replicas of one router, and the pick among them
    held.py        to which of them connections are held
    assigned.py    calls that Serve's own router assigned to a replica, over our sessions
    serve_calls.py calls that are left to Serve's own router
    tally.py       what is counted, and told to Ray's metrics

The way to a replica (the same loop):
    pool.py        the connections of one loop, shared by its routers
    connection.py  one replica: opened when needed, opened again when lost
    session.py     one session, from the dial to its loss
    events.py      the guard that hands out what a message says of many calls
    heartbeats.py  which sessions are looked at in a beat
    trouble.py     why there is no session, replicas that fail their calls; what the log is told
    reconnects.py  when lost sessions are opened again, if they are many
"""
