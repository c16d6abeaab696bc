-- Hilum's first schema. States are text with a check, so that `psql` shows what the documents say.
-- Every transition is one statement fenced by the old state; it writes an `event` in the same transaction.

create table installation (
    singleton   boolean primary key default true check (singleton),
    id          uuid not null,
    created_at  timestamptz not null default now()
);

-- What administrators own -------------------------------------------------------------------------------------

create table local_ae (
    ae_title    text primary key,
    enabled     boolean not null,
    description text not null
);

create table peer (
    name      text primary key,
    ae_title  text not null,
    host      text not null,
    port      integer check (port between 1 and 65535),
    may_store boolean not null,
    contact   text not null
);

create table destination (
    name              text primary key,
    kind              text not null check (kind in ('dicom')),
    peer              text not null references peer (name) deferrable initially deferred,
    calling_ae_title  text not null,
    send_not_analysed boolean not null
);

create table route (
    name              text primary key,
    sort_order        integer not null,
    enabled           boolean not null,
    called_ae_title   text not null references local_ae (ae_title) deferrable initially deferred,
    calling_ae_titles text[] not null,
    modalities        text[] not null,
    pipeline          text not null check (pipeline in ('chest_radiograph')),
    bundle            text not null,
    quiet_seconds     integer not null check (quiet_seconds > 0),
    max_wait_seconds  integer not null check (max_wait_seconds >= quiet_seconds),
    destinations      text[] not null
);

-- What happened on the network --------------------------------------------------------------------------------

create table association (
    id                           uuid primary key,
    node                         text not null,
    peer_address                 text not null,
    calling_ae_title             text not null,
    called_ae_title              text not null,
    peer_implementation_class_uid    text,
    peer_implementation_version_name text,
    started_at                   timestamptz not null,
    ended_at                     timestamptz,
    end_kind                     text,
    end_words                    text,
    objects_stored               bigint not null default 0,
    objects_refused              bigint not null default 0,
    bytes_received               bigint not null default 0,
    -- filled for a refusal
    expected                     text,
    received                     text,
    remedy                       text
);
create index association_open on association (node) where ended_at is null;
create index association_started on association (started_at);

create table study (
    study_instance_uid text primary key,
    patient_id         text,
    patient_name       text,
    patient_birth_date text,
    patient_sex        text,
    accession_number   text,
    study_date         text,
    study_time         text,
    study_description  text,
    first_received_at  timestamptz not null,
    last_received_at   timestamptz not null
);

create table series (
    series_instance_uid text primary key,
    study_instance_uid  text not null references study,
    modality            text,
    series_number       bigint,
    series_description  text
);
create index series_study on series (study_instance_uid);

-- One stored object as received by one local AE. Same UID, other bytes: a further version.
create table instance (
    id                  uuid primary key,
    sop_instance_uid    text not null,
    local_ae_title      text not null,
    sha256              bytea not null check (length(sha256) = 32),
    version             integer not null,
    sop_class_uid       text not null,
    study_instance_uid  text not null references study,
    series_instance_uid text not null,
    modality            text,
    transfer_syntax_uid text not null,
    size_bytes          bigint not null,
    archive_key         text not null unique,
    association_id      uuid not null,
    calling_ae_title    text not null,
    peer_address        text not null,
    received_at         timestamptz not null,
    own_output          boolean not null,
    unique (sop_instance_uid, local_ae_title, sha256)
);
create index instance_study on instance (study_instance_uid, local_ae_title);
create index instance_association on instance (association_id);

-- How far each node's archive folder is indexed: every file of an earlier hour folder is in `instance`.
create table archive_watermark (
    node          text primary key,
    indexed_until text not null
);

-- What we owe an answer for -----------------------------------------------------------------------------------

create table workup (
    id                  uuid primary key,
    study_instance_uid  text not null references study,
    local_ae_title      text not null,
    state               text not null check (state in
                            ('receiving', 'complete', 'analysing', 'answered', 'not_routed', 'parked')),
    state_words         text not null,
    revision            integer not null,
    calling_ae_title    text not null,
    route_name          text,
    completeness_reason text,
    first_object_at     timestamptz not null,
    last_object_at      timestamptz not null,
    due_at              timestamptz not null,
    updated_at          timestamptz not null default now(),
    unique (study_instance_uid, local_ae_title)
);
create index workup_open on workup (state, due_at) where state in ('receiving', 'complete', 'analysing');
create index workup_updated on workup (updated_at);

create table run (
    id                   uuid primary key,
    workup_id            uuid not null references workup,
    revision             integer not null,
    role                 text not null check (role in ('live')),
    bundle               text not null,
    bundle_digest        bytea,
    bundle_identity      jsonb,
    configuration_sha256 bytea,
    result_key           bytea,
    destinations         text[] not null,
    state                text not null check (state in
                             ('queued', 'running', 'succeeded', 'not_analysed', 'superseded', 'failed', 'parked')),
    reason               text,
    words                text not null,
    attempt              integer not null,
    maximum_attempts     integer not null,
    next_attempt_at      timestamptz not null,
    queued_at            timestamptz not null default now(),
    started_at           timestamptz,
    finished_at          timestamptz,
    rendered_at          timestamptz,
    stage_milliseconds   jsonb,
    outcome              jsonb,
    unique (workup_id, revision, bundle, role)
);
create index run_open on run (state, next_attempt_at) where state in ('queued', 'running', 'failed');
create index run_unrendered on run (finished_at) where rendered_at is null and state in ('succeeded', 'not_analysed');

create table result (
    id                  uuid primary key,
    run_id              uuid not null references run,
    kind                text not null check (kind in ('sr', 'sc')),
    ordinal             integer not null,
    sop_class_uid       text not null,
    sop_instance_uid    text not null unique,
    series_instance_uid text not null,
    transfer_syntax_uid text not null,
    archive_key         text not null unique,
    preview_key         text,
    sha256              bytea not null check (length(sha256) = 32),
    size_bytes          bigint not null,
    device_uid          text not null,
    created_at          timestamptz not null default now()
);
create index result_run on result (run_id);

create table delivery (
    id               uuid primary key,
    result_id        uuid not null references result,
    destination      text not null,
    send_order       integer not null,
    state            text not null check (state in ('waiting', 'sending', 'delivered', 'cancelled', 'dead')),
    attempts         integer not null default 0,
    next_attempt_at  timestamptz not null default now(),
    last_status      integer,
    last_words       text not null default '',
    created_at       timestamptz not null default now(),
    first_attempt_at timestamptz,
    delivered_at     timestamptz,
    unique (result_id, destination)
);
create index delivery_open on delivery (destination, next_attempt_at) where state in ('waiting', 'sending');

create table event (
    id           bigint generated always as identity primary key,
    at           timestamptz not null default now(),
    subject_kind text not null check (subject_kind in
                     ('association', 'instance', 'workup', 'run', 'delivery', 'site', 'node')),
    subject_id   text not null,
    kind         text not null,
    words        text not null,
    data         jsonb not null default '{}'
);
create index event_subject on event (subject_kind, subject_id, id);

-- The queue workers of each node and role, so that a restart can return a dead worker's jobs at once.
create table queue_worker (
    worker_id  text primary key,
    node       text not null,
    role       text not null,
    started_at timestamptz not null default now()
);
