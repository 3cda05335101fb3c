"""The one room for Ray's private names. Nothing else imports `ray.serve._private`.

    versions.py   which Ray is supported; refuses the others
    routers.py    a handle's router: replica set, configuration, metrics
    request_routers.py  requests that Serve's own router places, over our sessions
    handles.py    a handle's default marker and flag
    requests.py   request context, parents and children of a request
    replicas.py   the replica this process runs: admission, metrics, user's methods
    tracing.py    Serve's spans at caller and replica, trace contexts, the gRPC ingress' context
    access_log.py Serve's access log lines, written in bulk
    exceptions.py the user's exception as Ray presents it
    scanning.py   handles and applications among constructor arguments
    cluster.py    node, secret of the cluster

Private names in use. The tests run on Ray 2.60; the names were looked up in 2.57.1, 2.58.1 and
2.59.0 too, and a small app (calls, streams, errors) was run on each of them.

| name | for |
| --- | --- |
| `router.SingletonThreadRouter`, `CurrentLoopRouter`, `._asyncio_router`, `SharedRouterLongPollClient` | the router behind a handle, and whether Serve still runs |
| `AsyncioRouter._event_loop`, `._request_router`, `._running_replicas`, `._metrics_manager`, `._deployment_available`, `._request_router_class`, `._node_id`, `._availability_zone`, `._prefer_local_node_routing`, `._controller_handle`, `._initial_backoff_s`, `._backoff_multiplier`, `._max_backoff_s` | replica set, configuration |
| `RouterMetricsManager._update_running_replicas`, `.update_deployment_config` (both wrapped on the instance), `._deployment_config`, `.num_queued_requests`, `.inc_/dec_num_queued_requests`, `.num_router_requests`, `.num_requests_sent_to_replicas` under `._queries_lock`, `.should_send_scaled_to_zero_optimized_push`, `.push_autoscaling_metrics_to_controller` | what Serve counts of a handle's calls |
| `RunningReplicaInfo`, `RunningReplica._replica_info` | what the control plane says of a replica |
| `RequestRouter._create_replica_wrapper_func` (wrapped on the instance), `.curr_replicas`, `RunningReplica._grpc_replica_wrapper` (set on the instance), `.stub`, `.actor_id`, `ReplicaWrapper`, `gRPCReplicaWrapper`, `ReplicaResult`, `ReplicaQueueLengthInfo`, `RequestMetadata` (extended), `._client`, `._reserved_slot_token`, `DeploymentHandle._init_router_and_get_metadata` (extended), `._dispatch` (`handle.py`) | a sender of ours in Serve's router |
| `DeploymentHandle._init`, `._init_router`, `._options`, `._remote`, `._router`, `._create_router` (of the class that ours extends: `handle.py`), `utils.DEFAULT` | Serve's own path, options |
| `Application._bound_deployment`, `._ingress_request_router` (`deployment.py`), `_PyObjScanner` | the application graph |
| `global_worker.actors`, `ReplicaActor._replica_impl` | the running replica |
| `Replica._semaphore` and its `_value`, `._reserved_slots`, `._metrics_manager`, `._event_loop`, `._user_callable_wrapper`, `._quiescing`, `._shutting_down`, `.perform_graceful_shutdown` (wrapped on the instance), `._replica_id`, `._deployment_id`, `._ingress`, `._access_log_context`, `.get_num_ongoing_requests` | admission, accounting, shutdown |
| `UserCallableWrapper.get_user_method_info`, `._call_func_or_gen`, `._run_sync_methods_in_threadpool`, `.event_loop` | Serve's rules of execution |
| `context._serve_request_context`, `_RequestContext`, `_in_flight_requests`, `_requests_pending_assignment` | request context, cancelling children |
| `tracing_utils.is_tracing_enabled`, `get_tracer`, `get_trace_context`, `set_trace_context`, `detach_trace_context`, `create_propagated_context`, `extract_propagated_context`, `TraceContextManager` and its `span`, `SpanKind`, `SpanAttributes`, `set_span_in_context`, `common.RequestProtocol` | Serve's spans |
| `ray.util.tracing.tracing_helper._is_tracing_enabled`, `_DictPropagator` | Ray's trace context |
| `logging_utils.ServeFormatter`, `access_log_msg`, the filters of `configure_component_logger` | access log |
| `internal_kv._internal_kv_put`, `_internal_kv_get`, `_raylet.AuthenticationTokenLoader` | the cluster's secret |
"""
