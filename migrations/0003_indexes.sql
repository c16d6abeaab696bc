-- What the status page, the gauges and the client commands ask again and again must not read whole tables.

create index run_newest on run (queued_at desc);
create index run_parked on run (finished_at) where state = 'parked';
create index result_newest on result (created_at desc);
create index delivery_dead on delivery (destination) where state = 'dead';
create index association_refused on association (started_at desc) where end_kind = 'refused';
