-- Where results go, and how soon, because of what was found: a route's rules, kept with its runs.
alter table route add column rules jsonb not null default '[]';
alter table run add column rules jsonb not null default '[]';
-- Sent before others that are due.
alter table delivery add column urgent boolean not null default false;
