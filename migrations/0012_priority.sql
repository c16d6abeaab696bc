-- How urgent a route's studies are: urgent runs are taken before routine ones, and their images go first at the networks.

alter table route
    add column priority text not null default 'routine' check (priority in ('routine', 'stat'));

alter table run
    add column priority text not null default 'routine' check (priority in ('routine', 'stat'));
