-- Retention looks for what was settled long ago, in portions: each would read all requests without these.
create index commitment_request_reported on commitment_request (reported_at) where state = 'reported';
create index commitment_asked_ended on commitment_asked (coalesce(answered_at, asked_at));

comment on column run.worked_on_by is
    'node.name of the node whose inference process claimed the last attempt, or the last rendering';
comment on column run.alive_until is
    'of a run that is analysed or rendered: until then nobody else may take it for a dead process''s; null when nobody is at it';
