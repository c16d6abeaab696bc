-- Retention: what is removed stays listed, without its file.

alter table instance add column removed_at timestamptz;
alter table result add column removed_at timestamptz;

-- Files whose rows say "removed": written in the same transaction, deleted when the file is gone. A kill between the
-- two leaves no file behind for ever.
create table file_to_remove (
    archive_key text primary key,
    since       timestamptz not null default now()
);

create index event_at on event (at);
create index workup_last_object on workup (last_object_at) where state in ('answered', 'not_routed');
create index result_preview on result (preview_key) where preview_key is not null;
