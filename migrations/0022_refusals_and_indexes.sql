-- What is let go when a destination is not asked for Storage Commitment any more: looked for at every drain.
create index delivery_commitment_open on delivery (destination)
    where (commitment_required or commitment in ('wanted', 'asked', 'failed', 'unanswered'))
      and commitment is distinct from 'committed';

-- Attempts of deliveries that are closed go with the history, the oldest first.
create index delivery_attempt_started on delivery_attempt (started_at);

comment on column delivery.broke is 'its last attempt ended the association: its run goes after the others';

alter table delivery add column refusals integer not null default 0;
comment on column delivery.refusals is 'attempts in vain that reached the destination: after five of them nothing waits for it';
