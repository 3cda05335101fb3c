"""The one room for Ray's private names. Nothing else imports `ray.serve._private`.

    versions.py         which Ray is supported; refuses the others
    routers.py          a handle's router: configuration, admission, metrics
    replica_facts.py    what the control plane says of a replica, and news of it
    replica_lists.py    the lists of replicas that reach a router, and what changed
    deferred_lists.py   when Serve's own request router takes such a list
    replica_handles.py  its view of a replica, whose actor is looked up when it is used
    router_metrics.py   the metrics of Serve's request router
    request_routers.py  requests that Serve's own router assigns, over our sessions
    handles.py          a handle's default marker and flag, the router of Serve's own handle
    requests.py         request context, parents and children of a request
    definitions.py      what a replica loads as its code, and the metadata it publishes
    replicas.py         the replica this process runs: admission, metrics, user's methods
    request_metrics.py  what Serve counts of a replica's requests, told in bulk
    ingress_context.py  the gRPC ingress' context as bytes
    tracing.py          Serve's spans at caller and replica, trace contexts, the gRPC ingress' context
    access_log.py       Serve's access log lines, written in bulk
    exceptions.py       the user's exception as Ray presents it
    references.py       pickles that tell which ObjectRefs they name
    lending.py          how callers and a replica exchange ObjectRefs
    store.py            payloads in Ray's object store
    scanning.py         handles and applications among constructor arguments
    cluster.py          node, Ray's directory on it, secret of the cluster

Private names in use; a name that begins with a dot belongs to the class before it. They are the
same in Ray 2.57 to 2.60, except for those of the second table. `tests/unit/test_private_names.py`
looks each of them up in the installed Ray and looks for others in the code; `make test-ray-versions`
does so, and runs the tests of a real Serve, on the newest patch of each of these versions.

| name | for |
| --- | --- |
| `router.SingletonThreadRouter`, `CurrentLoopRouter`, `._asyncio_router`, `SharedRouterLongPollClient` | the router behind a handle, and whether Serve still runs |
| `AsyncioRouter._event_loop`, `._request_router`, `._running_replicas`, `._metrics_manager`, `._deployment_available`, `._request_router_class`, `._node_id`, `._availability_zone`, `._prefer_local_node_routing`, `._controller_handle`, `._initial_backoff_s`, `._backoff_multiplier`, `._max_backoff_s`, `._self_actor_id` | replicas, configuration |
| `AsyncioRouter._running_replicas` (set), `._request_router_initialized`, `._handle_source`, `.assign_request`, `.choose_replica`, `.broadcast` (all three wrapped on the instance), `RequestRouter._update_running_replicas`, `._choose_replica_for_request` (both replaced on the instance), `._probe_queue_lens` (while a list is taken), `.num_pending_requests`, `.on_replica_actor_died`, `DeploymentHandleSource`, `RunningReplica` (extended), `RunningReplica._actor_handle`, `ActorHandle._actor_id`, `RunningReplicaInfo.get_actor_handle` | lists that Serve's request router takes when it needs them, actors that are looked up when they are used |
| `RouterMetricsManager._update_running_replicas` (replaced on the instance), `.update_deployment_config` (wrapped on the instance), `._deployment_config`, `.num_queued_requests`, `.inc_/dec_num_queued_requests`, `.num_router_requests`, `.num_requests_sent_to_replicas` under `._queries_lock`, `.should_send_scaled_to_zero_optimized_push`, `.push_autoscaling_metrics_to_controller`, `._cached_metrics_enabled`, `.num_running_requests_gauge` | what Serve counts of a handle's calls |
| `AsyncioRouter._objref_resolution_latency_ms`, `RequestRouter.queue_wait_time_ms_histogram`, `.router_queue_len_gauge`, `.num_routing_tasks_gauge`, `.curr_num_routing_tasks`, `.num_routing_tasks_in_backoff_gauge`, `.num_routing_tasks_in_backoff` | metrics of the request router |
| `RequestRouter.curr_replicas`, `PowerOfTwoChoicesRequestRouter`, `RunningReplicaInfo`, `RunningReplica._replica_info` | what the control plane says of a replica |
| `RequestRouter._create_replica_wrapper_func` (wrapped on the instance), `RunningReplica._grpc_replica_wrapper` (set on the instance), `.stub`, `.actor_id`, `ReplicaWrapper`, `gRPCReplicaWrapper`, `ReplicaResult`, `ReplicaQueueLengthInfo`, `RequestMetadata` (extended), `RequestMetadata._client`, `._reserved_slot_token`, `DeploymentHandle._init_router_and_get_metadata` (extended), `._dispatch` (in handle.py), `DeploymentResponse._fetch_future_result_async`, `._replica_result_future` | a sender of ours in Serve's router |
| `DeploymentHandle._init`, `._init_router`, `._options`, `._remote`, `._router`, `._create_router`, `._is_router_running_in_separate_loop` (of the class that ours extends, in handle.py), `DeploymentHandle._create_request_counter`, `DynamicHandleOptions._by_reference`, `utils.DEFAULT`, `utils.get_random_string`, `context._get_internal_replica_context`, `GENERATOR_COMPOSITION_NOT_SUPPORTED_ERROR`, `inside_ray_client_context` | Serve's own path, options, routers that handles share |
| `Application._bound_deployment`, `._ingress_request_router`, `._with_ingress_request_router` (in deployment.py), `_PyObjScanner` | the application graph |
| `Deployment._deployment_config`, `._replica_config` (in deployment.py too), `ReplicaConfig.deployment_def`, `.serialized_deployment_def` (set), `UserCallableWrapper._deployment_def`, `.initialize_callable` (wrapped on the instance), `._user_record_replica_metadata` (set on the instance), `._call_func_or_gen` | what a replica loads, and the metadata it publishes |
| `worker.global_worker`, `global_worker.actors`, `ReplicaActor._replica_impl` | the running replica |
| `Worker.node`, `Node.get_session_dir_path` | where the sockets of a node's replicas lie |
| `Semaphore._value`, `._waiters`, `.get_max_value`, `Replica._semaphore`, `._reserved_slots`, `._metrics_manager`, `._event_loop`, `._user_callable_wrapper`, `._quiescing`, `._shutting_down`, `.perform_graceful_shutdown` (wrapped on the instance), `._replica_id`, `._deployment_id`, `._ingress`, `._access_log_context`, `.get_num_ongoing_requests` | admission, accounting, shutdown |
| `ReplicaMetricsManager.inc_/dec_num_ongoing_requests`, `._user_code_time_accumulator`, `._max_processing_latency_trackers`, `._processing_latency_tracker`, `._request_counter`, `._error_counter`, `._cached_metrics_enabled`, `RequestMetadata`, `Metric._metric`, `._get_final_tags` | what Serve counts of a replica's requests |
| `UserCallableWrapper.get_user_method_info`, `._call_func_or_gen`, `._run_sync_methods_in_threadpool`, `.event_loop` | Serve's rules of execution |
| `constants.RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP`, `RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING`, `RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE` | Serve's flags |
| `context._serve_request_context`, `_RequestContext._internal_request_id`, `._client`, `context._in_flight_requests` and its default factory, `_requests_pending_assignment` | request context, cancelling children |
| `tracing_utils.is_tracing_enabled`, `get_tracer`, `get_trace_context`, `set_trace_context`, `detach_trace_context`, `create_propagated_context`, `extract_propagated_context`, `TraceContextManager`, `SpanKind`, `SpanAttributes`, `set_span_in_context`, `RequestProtocol` | Serve's spans |
| `tracing_helper._is_tracing_enabled`, `_get_opentelemetry`, `_DictPropagator` | Ray's trace context |
| `logging_utils.ServeFormatter`, `access_log_msg`, `ServeContextFilter`, `ServeLogAttributeRemovalFilter`, `log_access_log_filter`, `log_to_stderr_filter` (the filters that `configure_component_logger` sets), `constants.SERVE_LOGGER_NAME` | access log |
| `internal_kv._internal_kv_put`, `_internal_kv_get`, `_raylet.AuthenticationTokenLoader`, `AuthenticationMode`, `get_authentication_mode` | the cluster's secret |
| `global_worker.get_serialization_context`, `SerializationContext.is_in_band_serialization`, `.set_in_band_serialization`, `.set_out_of_band_serialization`, `.add_contained_object_ref`, `.get_and_clear_contained_object_refs` | the ObjectRefs that a pickle names |
| `split_buffer`, `unpack_pickle5_buffers`, `CoreWorker.serialize_object_ref`, `.deserialize_and_register_object_ref`, `.get_objects`, `.get_all_reference_counts` | payloads in the object store |
| `ReplicaID`, `.to_full_id_str`, `DeploymentID`, `constants.SERVE_NAMESPACE` | the actor of a replica |

Where the versions differ:

| name | Ray | without it |
| --- | --- | --- |
| `DeploymentConfig.backpressure_config` | since 2.58 | `BackPressureError` has no `status_code` and no `retry_after_s` |
"""
