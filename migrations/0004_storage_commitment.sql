-- Storage Commitment (PS3.4 annex J), in both roles.

-- What peers asked us to keep: one row for each N-ACTION, written before it is answered. It lists every instance of
-- what was sent, so it is evidence of completeness too.
create table commitment_request (
    id                    uuid primary key,
    transaction_uid       text not null,
    association_id        uuid not null,
    calling_ae_title      text not null,
    local_ae_title        text not null,
    peer_address          text not null,
    -- of the sorted list of instances: tells a repeated request from another one with the same Transaction UID
    instances_sha256      bytea not null check (length(instances_sha256) = 32),
    -- another request of this peer, with other instances, has the same Transaction UID
    duplicate_transaction boolean not null,
    -- reporting: an attempt has been counted and is going on, or its process has died
    state                 text not null check (state in ('waiting', 'reporting', 'reported', 'dead')),
    attempts              integer not null default 0,
    next_attempt_at       timestamptz not null default now(),
    -- when the list was compared with the archive; the answer does not change after that
    evaluated_at          timestamptz,
    last_status           integer,
    last_words            text not null default '',
    created_at            timestamptz not null default now(),
    reported_at           timestamptz
);
create index commitment_request_open on commitment_request (next_attempt_at) where state in ('waiting', 'reporting');
create index commitment_request_transaction on commitment_request (calling_ae_title, transaction_uid);
create index commitment_request_association on commitment_request (association_id);
create index commitment_request_newest on commitment_request (created_at desc);

create table commitment_instance (
    commitment_request_id uuid not null references commitment_request on delete cascade,
    ordinal               integer not null,
    sop_class_uid         text not null,
    sop_instance_uid      text not null,
    -- (0008,1197); null before the evaluation and for what we keep
    failure_reason        integer,
    primary key (commitment_request_id, ordinal)
);
create index commitment_instance_sop on commitment_instance (sop_instance_uid);

-- What we asked peers to keep.
create table commitment_asked (
    transaction_uid text primary key,
    peer_ae_title   text not null,
    local_ae_title  text not null,
    state           text not null check (state in ('asked', 'answered')),
    asked_at        timestamptz not null default now(),
    answered_at     timestamptz
);

create table commitment_asked_instance (
    transaction_uid  text not null references commitment_asked on delete cascade,
    sop_class_uid    text not null,
    sop_instance_uid text not null,
    answer           text check (answer in ('committed', 'failed')),
    failure_reason   integer,
    primary key (transaction_uid, sop_instance_uid)
);

alter table event drop constraint event_subject_kind_check;
alter table event add constraint event_subject_kind_check check (subject_kind in
    ('association', 'instance', 'workup', 'run', 'delivery', 'commitment', 'site', 'node'));
