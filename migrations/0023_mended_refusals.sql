-- Whether a refused caller was accepted since is noted when it is, instead of looked up for each refusal that is shown:
-- Postgres chose to read all associations for each refusal of a stranger, unless the table was very large.
alter table refusal add column mended_at timestamptz;
comment on column refusal.mended_at is
    'the latest association that was accepted from the same caller when it was refused no longer; open again where last_at is later';

update refusal r set mended_at = accepted.at
from (select calling_ae_title, called_ae_title, peer_address, max(started_at) as at from association group by 1, 2, 3) accepted
where r.kind = 'association' and r.last_at < accepted.at and r.calling_ae_title = accepted.calling_ae_title
    and r.called_ae_title = accepted.called_ae_title and r.peer_address = accepted.peer_address;

create index refusal_caller on refusal (peer_address, calling_ae_title, called_ae_title) where kind = 'association';
create index refusal_newest on refusal (last_at, id);

-- Nothing asks by them any more: the first was for what is now noted, the second for rows that 0008 has moved away.
drop index association_caller;
drop index association_refused;
