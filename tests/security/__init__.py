"""What an attacker would try, by the ids of the threat model: what it would gain, and that it does not.

A test here has the id in its name. What the tests of a part prove already is not repeated; it stands in this table, and a
test compares the two with what there is. Fuzzing has a folder of its own (``tests/fuzz``), whose docstrings name ids as well.

A01  a Host that rewrites the path
     middleware/test_security_limits.py::test_a_malformed_host_is_refused_whatever_the_path
A02  another spelling of a path, mounts
     test_wire_paths.py::test_another_spelling_of_a_guarded_path_is_no_path
     test_wire_paths.py::test_no_misspelling_of_a_metered_path_is_open
     frameworks/test_matrix.py::test_a_slash_that_the_client_wrote_is_another_path
A03  keys twice, folded, too long, no text
     middleware/test_tenant_keys.py::test_what_can_be_no_key_never_reaches_the_store
     middleware/test_tenant_keys.py::test_two_keys_that_disagree_are_400
A04  internal headers sent by a client
     proxy/test_app_headers_and_bodies.py::test_the_clients_headers_stay_here
     middleware/test_tenant_damping.py::test_the_wrong_keys_of_one_source_delay_no_other
A05  injection by a key, keys that begin alike
     middleware/test_tenant_keys.py::test_a_wrong_key_is_401_from_the_sql_store_too
A06  timing of near misses
     middleware/test_tenant_damping.py::test_an_unknown_a_revoked_and_an_expired_key_are_refused_by_the_same_steps
     middleware/test_tenant_damping.py::test_a_near_miss_is_refused_by_the_same_steps
A07  secrets at rest, in reprs, in what is shown
     admin/test_keys.py::test_no_secret_is_ever_shown_again
     test_settings.py::test_no_secret_is_in_a_repr
A08  the admin API without, and with the wrong key
     admin/test_access.py::test_without_a_valid_key_every_path_and_method_says_the_same
     admin/test_access.py::test_a_tenants_key_reads_its_own_and_nothing_else
     admin/test_access.py::test_without_its_setting_the_api_is_open_to_stored_admin_keys_only
A09  fields that are not the caller's to set
     admin/test_app_tenants.py::test_no_other_field_can_be_set
     admin/test_app_keys.py::test_no_other_field_of_a_key_can_be_set
     admin/test_tenants.py::test_what_is_not_the_clients_to_set_is_refused_by_name
A10  twins of a tenant's id
     admin/test_app_tenants.py::test_an_id_that_is_none_is_refused
     middleware/test_tenant.py::test_a_tenant_that_a_key_may_not_name_is_403_existing_or_not
     stores/test_redis_ledger.py::test_a_tenant_cannot_leave_its_slot
A11  a revoked key that lives on
     middleware/test_tenant_store.py::test_look_ups_are_remembered_briefly
     admin/test_app_keys.py::test_both_keys_work_while_one_is_rotated
A12  N first calls at once
     stores/test_ledger.py::test_calls_at_once_never_pass_the_limit
     stores/test_sqlite_processes.py::test_two_processes_share_one_budget_exactly
     test_money_end_to_end.py::test_a_hundred_calls_at_once_for_money_that_pays_for_ten
     stores/test_postgres_ledger.py::test_two_ledgers_let_in_exactly_what_fits
A13  hanging up at every point
     test_aborts.py::test_a_stream_that_is_left_is_settled_once
     test_aborts.py::test_a_json_answer_that_is_left_is_settled_once
     test_aborts.py::test_a_stream_that_is_left_over_a_socket_is_settled_once
A14  limits that make no sense, hidden usage
     test_wire_refused.py::test_a_wrong_value_is_refused_by_its_name
     proxy/test_app_streams.py::test_usage_is_asked_for_and_its_event_dropped
A15  another model than the one that is paid, surcharges
     test_wire_refused.py::test_a_deciding_key_given_twice_is_refused
     test_tokens.py::test_what_a_request_asks_for_may_cost_more
     adapters/test_openrouter.py::test_a_suffix_that_costs_more_must_be_listed
     adapters/test_compatible.py::test_a_second_name_for_a_limit_is_no_way_round_it
     proxy/test_relay.py::test_a_fallback_is_only_for_those_who_may_use_it
A16  usage that lies
     test_usage.py::test_a_senseless_count_makes_the_usage_unknown
     middleware/test_budget_answers.py::test_a_senseless_usage_is_no_free_call
A17  retries and fallbacks under one hold
     middleware/test_budget_calls.py::test_the_hold_is_raised_before_a_further_call_or_the_call_is_refused
     middleware/test_budget_calls.py::test_calls_that_begin_side_by_side_are_held_together
     metering/test_calls.py::test_each_retry_is_a_call_of_its_own
     proxy/test_relay.py::test_an_attempt_that_the_money_does_not_pay_for_is_not_made
A18  window boundaries, clocks set back
     stores/test_ledger.py::test_a_window_that_rolls_over_neither_loses_nor_doubles_a_hold
A19  amounts near the largest
     stores/test_ledger.py::test_great_amounts_are_exact
     admin/test_tenants.py::test_credits_never_sum_up_to_what_no_database_can_hold
A20  the same idempotency key
     admin/test_tenants.py::test_an_adjustment_with_an_id_is_booked_once
A21  a second surface that skips a gate
     middleware/test_budget_prices.py::test_an_endpoint_without_a_price_is_refused_where_there_is_a_budget
     middleware/test_base.py::test_a_websocket_on_a_governed_path_is_closed_by_gatekeepers
     realtime/test_session_ends.py::test_a_flood_of_bad_frames_that_nobody_reads_the_answers_to_ends_the_session
     test_media_end_to_end.py::test_an_image_model_is_no_way_to_a_free_chat
A22  refunds by a failure after content
     middleware/test_budget_hangups.py::test_a_crash_is_not_free
A23  another tenant's cached answer
     middleware/test_cache_isolation.py::test_nobody_gets_an_answer_to_another_request
     middleware/test_cache_isolation.py::test_tenants_share_only_where_they_are_named
     middleware/test_cache_isolation.py::test_no_header_leads_to_anothers_answers
A24  identities that mix
     proxy/test_upstream.py::test_answers_never_mix
     metering/test_context.py::test_the_context_is_reset_in_the_servers_task
     middleware/test_base_stack.py::test_one_instance_serves_two_event_loops_in_threads
A25  a body, query or header that leads elsewhere
     test_wire_refused.py::test_fields_that_route_money_or_trust_are_refused
A26  redirects and URLs into the network
     adapters/test_compatible.py::test_a_server_of_ones_own_is_not_sent_to_load_urls
     adapters/test_llamacpp.py::test_a_picture_by_url_is_refused_before_the_host_loads_it
A27  paths in a model's name
     adapters/test_openai.py::test_a_request_goes_to_its_path
A28  headers smuggled in both directions
     middleware/test_security_limits.py::test_a_head_that_two_servers_could_read_differently_is_refused
     proxy/test_app_headers_and_bodies.py::test_the_providers_headers_come_back_by_list
     proxy/test_upstream_connecting.py::test_a_header_with_a_line_break_is_refused
     proxy/test_upstream_broken.py::test_a_broken_answer_is_never_taken_for_one
A29  references out of a schema
     structured/test_compiled.py::test_no_reference_leads_out_of_the_schema
     structured/test_compiled.py::test_dynamic_references_are_refused
     structured/test_compiled.py::test_names_in_the_world_outside_mean_nothing
A30  packed bodies
     test_exchange_body.py::test_a_type_or_encoding_that_cannot_be_read_is_refused_unread
A31  bodies and heads without end
     middleware/test_security_limits.py::test_a_body_that_does_not_arrive_in_time_is_refused
     middleware/test_security_limits.py::test_a_hundred_thousand_headers_are_refused_unread
     middleware/test_security_limits.py::test_a_body_of_many_tiny_pieces_is_taken
     proxy/test_upstream_broken.py::test_trailers_without_end_are_given_up_on
A32  slow readers, endless lines and events
     proxy/test_streaming_backpressure.py::test_a_client_that_reads_nothing_holds_the_provider_back
     test_sse.py::test_an_event_without_an_end_is_given_up_on
     proxy/test_streaming_cuts.py::test_a_stream_reads_the_same_however_it_is_cut
A33  depth, keys, numbers, odd bytes
     middleware/test_security_limits.py::test_a_body_nested_too_deeply_is_refused
     test_wire.py::test_what_is_nested_too_deeply_to_write_is_refused
A34  schemas that cost seconds
     structured/test_compiled.py::test_what_could_cost_too_much_is_refused
     structured/test_steps.py::test_no_validation_takes_more_steps_than_were_foreseen
A35  a tokenizer kept busy
     test_tokens_exact.py::test_the_exact_bound_is_never_below_the_count
A36  labels, log lines and trace headers by a client
     middleware/test_tracing.py::test_a_junk_request_id_is_replaced
     middleware/test_tracing.py::test_an_unsound_traceparent_starts_a_trace_of_our_own
     proxy/test_routing.py::test_many_made_up_names_do_not_fill_the_memory
A37  websockets
     middleware/test_base.py::test_a_websocket_on_a_governed_path_is_closed_by_gatekeepers
     realtime/test_session_ends.py::test_a_flood_of_bad_frames_that_nobody_reads_the_answers_to_ends_the_session
A38  circles, retry storms
     proxy/test_streaming_chains.py::test_a_circle_of_two_gateways_is_found
     proxy/test_routing_models.py::test_a_fallback_that_leads_back_by_way_of_others_ends
     proxy/test_relay.py::test_a_call_makes_no_more_than_sixteen_attempts
     proxy/test_failures.py::test_whatever_stands_there_is_a_time_or_none
A39  herds
     middleware/test_tenant_store.py::test_look_ups_are_asked_once_however_many_wait
     middleware/test_policy_memory.py::test_calls_that_ask_the_same_ask_once
     middleware/test_cache_flight.py::test_fifty_at_once_are_one_call
A40  forms
     test_multipart.py::test_a_form_without_a_sound_boundary_is_refused
     test_multipart.py::test_hostile_bytes_come_to_an_end
     test_multipart.py::test_what_two_readers_may_read_in_two_ways_is_refused
A41  a policy that is away, slow or lying
     middleware/test_policy_opa.py::test_an_odd_answer_follows_the_fail_mode
     middleware/test_policy_opa.py::test_an_engine_that_is_frozen_or_killed_stops_the_calls_until_it_is_back
     test_opa.py::test_no_prompt_is_in_the_input_unless_asked_for
A42  a store that is away, slow or forgetful
     stores/test_redis_outages.py::test_a_frozen_server_makes_nobody_wait_longer_than_the_patience
     stores/test_redis_outages.py::test_a_call_that_ran_while_the_data_was_lost_is_paid
     middleware/test_budget_faults.py::test_a_ledger_fault_at_the_end_does_not_free_the_call
A43  settings that are wrong
     test_settings.py::test_a_bad_value_of_the_file_is_named_and_not_repeated
     test_settings.py::test_a_file_that_cannot_be_read_is_told
A44  what is brought along
     test_packaging.py::test_the_wheel_holds_the_package_and_no_more
     test_architecture.py::test_importing_the_package_loads_nothing_heavy
A45  prompts kept or told
     middleware/test_tracing.py::test_a_record_holds_no_prompt_no_answer_and_no_secret
"""
