"""The one room for Ray's private names. Nothing else imports `ray.serve._private`.

    versions.py   which Ray is supported; refuses the others
    routers.py    a handle's router: replica set, configuration, metrics
    requests.py   request context, parents and children of a request
    replicas.py   the replica this process runs: admission, metrics, user's methods
    access_log.py Serve's access log lines, written in bulk
    exceptions.py the user's exception as Ray presents it
    cluster.py    node, secret of the cluster

Private names in use, checked on Ray 2.57 to 2.60 by tests/ray:

| name | for |
| --- | --- |
| `router.SingletonThreadRouter`, `CurrentLoopRouter`, `._asyncio_router` | the router behind a handle |
| `AsyncioRouter._event_loop`, `._request_router`, `._running_replicas`, `._metrics_manager`, `._deployment_available`, `._request_router_class`, `._node_id`, `._availability_zone`, `._prefer_local_node_routing` | replica set, configuration |
| `RouterMetricsManager._update_running_replicas`, `.update_deployment_config` (wrapped on the instance), `._deployment_config`, `.inc_/dec_num_queued_requests`, `.inc_num_total_requests`, `.inc_/dec_num_running_requests_for_replica`, `.should_send_scaled_to_zero_optimized_push`, `.push_autoscaling_metrics_to_controller` | what Serve counts of a handle's calls |
| `global_worker.actors`, `ReplicaActor._replica_impl` | the running replica |
| `Replica._semaphore`, `._metrics_manager`, `._event_loop`, `._user_callable_wrapper`, `._quiescing`, `._shutting_down`, `.perform_graceful_shutdown` (wrapped on the instance), `._replica_id`, `._ingress`, `._access_log_context`, `.get_num_ongoing_requests` | admission, accounting, shutdown |
| `UserCallableWrapper.get_user_method_info`, `._call_func_or_gen`, `._run_sync_methods_in_threadpool`, `.event_loop` | Serve's rules of execution |
| `context._serve_request_context`, `_RequestContext`, `_in_flight_requests` | request context, cancelling children |
| `logging_utils.ServeFormatter`, `access_log_msg`, the filters of `configure_component_logger` | access log |
"""
