-- Who works on a run, and until when that is to be believed: whoever works says again and again that it still does. A run
-- whose time has passed was left by a process that died.
alter table run add column worked_on_by text;
alter table run add column alive_until timestamptz;
-- Devices and precision.
alter table run add column computed_with text[] not null default '{}';

-- What run_judged makes of the outcome, so that a comparison need not read outcomes with their maps and masks. Null of runs
-- from before, of which it is computed when asked for; JSON null of a bundle that only measures.
alter table run add column judged jsonb;

comment on column run.worked_on_by is 'node.name of the node whose inference process claimed the last attempt';
comment on column run.alive_until is 'of a run in state running: until then nobody else may take it for a dead process''s';
comment on column run.computed_with is
    'of each network, in the order of the bundle: its name, the devices of its copies and the precision of all of them';
