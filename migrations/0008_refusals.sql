-- Every refused association, presentation context or object: one row for what is alike within an hour, with a count.
-- Rows go after 90 days, and the oldest beyond 10,000 of a node. They are notes for people: nothing is decided by them.
create table refusal (
    id               bigint generated always as identity primary key,
    node             text not null,
    kind             text not null check (kind in ('association', 'context', 'object')),
    -- as counted in the metrics
    reason           text not null,
    peer_address     text not null,
    calling_ae_title text not null,
    called_ae_title  text not null,
    sop_class_uid    text not null,
    expected         text not null,
    received         text not null,
    remedy           text not null,
    harmless         boolean not null,
    -- SOP Instance UID of the last object
    example          text,
    count            bigint not null check (count > 0),
    first_at         timestamptz not null,
    last_at          timestamptz not null,
    -- `hilum doctor allow`
    allowed_at       timestamptz
);
create index refusal_alike on refusal (peer_address, kind, reason, last_at);
create index refusal_last on refusal (node, last_at);

insert into refusal (node, kind, reason, peer_address, calling_ae_title, called_ae_title, sop_class_uid, expected,
                     received, remedy, harmless, count, first_at, last_at)
select node, 'association', 'earlier_version', peer_address, calling_ae_title, called_ae_title, '',
       coalesce(max(expected), ''), coalesce(max(received), ''), coalesce(max(remedy), ''), false, count(*),
       min(started_at), max(started_at)
from association where end_kind = 'refused'
group by node, peer_address, calling_ae_title, called_ae_title
order by max(started_at);

-- A refused association is no association: its rows were without bound.
delete from association where end_kind = 'refused';
alter table association drop column expected, drop column received, drop column remedy;

-- What each admitted AE title offered in its latest association request.
create table peer_offer (
    calling_ae_title            text primary key,
    peer_address                text not null,
    called_ae_title             text not null,
    implementation_class_uid    text,
    implementation_version_name text,
    max_pdu_length_bytes        bigint not null,
    contexts                    jsonb not null,
    at                          timestamptz not null
);

-- What each peer accepted when it was probed last, and before.
create table peer_probe (
    peer     text primary key,
    outcome  jsonb not null,
    previous jsonb
);

create index association_caller on association (calling_ae_title, called_ae_title, peer_address, started_at);
