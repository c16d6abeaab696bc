-- Deliveries in depth: kinds of destinations, alternatives, a row for each attempt, the state of destinations, and
-- Storage Commitment for what we sent.

-- Where results go ----------------------------------------------------------------------------------------------

alter table destination alter column peer drop not null, alter column calling_ae_title drop not null;
alter table destination drop constraint destination_kind_check;
alter table destination add constraint destination_kind_check
    check (kind in ('dicom', 'dicomweb', 'folder', 'return_to_sender'));
alter table destination
    add column url                        text,
    add column authentication             jsonb,
    add column folder                     text,
    add column maximum_associations       integer not null default 1 check (maximum_associations between 1 and 4),
    add column commitment                 text not null default 'off'
                                          check (commitment in ('off', 'optional', 'required')),
    add column commitment_timeout_seconds integer not null default 86400 check (commitment_timeout_seconds > 0);
comment on column destination.authentication is 'names files with secrets, never a secret';

-- Alternatives --------------------------------------------------------------------------------------------------

alter table delivery
    add column run_id uuid references run,
    add column chain  text not null default '',
    add column rank   integer not null default 0;
update delivery d set run_id = x.run_id, chain = x.kind || x.ordinal from result x where x.id = d.result_id;
alter table delivery add column not_taken boolean not null default false;
comment on column delivery.not_taken is 'the destination accepts no such object: it is tried again, and nothing waits for it';
alter table delivery add column broke boolean not null default false;
comment on column delivery.broke is 'its last attempt ended the association: it goes after the others, and says nothing of the destination';
alter table delivery alter column run_id set not null;
alter table delivery alter column chain drop default, alter column rank drop default;
comment on column delivery.chain is 'what is owed: of the deliveries of one run, destination and chain one arrives';
comment on column delivery.rank is 'the place among the alternatives of the chain, the preferred one first, from 0';

alter table delivery drop constraint delivery_state_check;
alter table delivery add constraint delivery_state_check check (state in
    ('waiting', 'sending', 'delivered', 'cancelled', 'dead', 'spare', 'replaced', 'unneeded'));
create index delivery_run on delivery (run_id, destination, send_order);

-- Every attempt -------------------------------------------------------------------------------------------------

create table delivery_attempt (
    delivery_id uuid not null references delivery on delete cascade,
    number      integer not null,
    started_at  timestamptz not null default now(),
    -- null while it goes on, and for ever when its process died
    ended_at    timestamptz,
    -- what the delivery became by it
    state       text check (state in ('delivered', 'waiting', 'dead', 'replaced')),
    status      integer,
    words       text not null default '',
    primary key (delivery_id, number)
);

-- How destinations do -------------------------------------------------------------------------------------------

-- A destination without a row has not failed.
create table destination_state (
    destination   text primary key,
    -- open: nothing is sent, and it is only asked whether it is there; half_open: it was there, one association decides
    state         text not null check (state in ('closed', 'open', 'half_open')),
    -- in a row
    failures      integer not null,
    since         timestamptz not null default now(),
    -- nothing is tried before
    next_probe_at timestamptz,
    words         text not null
);

-- Storage Commitment for what we sent ---------------------------------------------------------------------------

-- null: a person asked, by `hilum commit`
alter table commitment_asked add column destination text;

alter table delivery
    add column commitment                 text check (commitment in
                                              ('wanted', 'asked', 'committed', 'failed', 'unanswered', 'unsupported')),
    add column commitment_required        boolean not null default false,
    add column commitment_words           text not null default '',
    add column commitment_asks            integer not null default 0,
    add column commitment_transaction_uid text,
    -- wanted: when to ask; asked: when the report is overdue
    add column commitment_due_at          timestamptz,
    add column commitment_since           timestamptz,
    -- sent once more, because the destination said that it does not keep it
    add column resent                     boolean not null default false;
create index delivery_commitment_due on delivery (destination, commitment_due_at)
    where commitment in ('wanted', 'asked');
create index delivery_commitment_transaction on delivery (commitment_transaction_uid)
    where commitment_transaction_uid is not null;
create index delivery_not_committed on delivery (destination) where commitment in ('failed', 'unanswered');
