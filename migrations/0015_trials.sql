-- A bundle that is tried beside a route's own: its results stay internal (shadow), or are sent for a share of the route's
-- studies while those of the route's own bundle stay internal there (canary).
alter table route
    add column trial_bundle        text,
    add column trial_mode          text check (trial_mode in ('shadow', 'canary')),
    add column trial_share_percent integer check (trial_share_percent between 1 and 100),
    add constraint route_trial_whole check (num_nonnulls(trial_bundle, trial_mode, trial_share_percent) in (0, 3));

alter table run
    drop constraint run_role_check,
    add constraint run_role_check check (role in ('live', 'shadow', 'canary'));
create index run_of_bundle on run (bundle, queued_at);
create index run_tried on run (bundle, finished_at) where role <> 'live';

-- Which bundle took over a route from which, who wanted it and what was known then. Rows are added, never changed.
create table promotion (
    id          bigint generated always as identity primary key,
    at          timestamptz not null default now(),
    route       text not null,
    kind        text not null check (kind in ('promotion', 'rollback')),
    from_bundle text not null,
    from_digest bytea,
    to_bundle   text not null,
    to_digest   bytea,
    by_whom     text not null,
    reason      text not null check (reason <> ''),
    comparison  jsonb not null
);
create index promotion_route on promotion (route, id);

-- Shadows are never rendered.
drop index run_unrendered;
create index run_unrendered on run (finished_at)
    where rendered_at is null and state in ('succeeded', 'not_analysed') and role <> 'shadow';

-- What a run said, for comparisons: the outputs of each image, or of the series of a CT; of lesions, 1 where the bundle's rule
-- is satisfied. Null of a bundle that only measures.
create function run_judged(outcome jsonb) returns jsonb language sql immutable as $$
    select case
        when outcome ->> 'kind' = 'analysed' then
            (select jsonb_agg(jsonb_build_object('uid', image -> 'source' ->> 'sop_instance_uid', 'fused', image -> 'fused'))
             from jsonb_array_elements(outcome -> 'images') image)
        when outcome ? 'classification' then
            jsonb_build_array(jsonb_build_object('uid', outcome -> 'series' ->> 'series_instance_uid',
                                                 'fused', outcome -> 'classification' -> 'fused'))
        when outcome ? 'lesions' then
            jsonb_build_array(jsonb_build_object('uid', outcome -> 'series' ->> 'series_instance_uid', 'fused',
                jsonb_build_array(case when outcome -> 'lesions' ->> 'run' is null then 0 else 1 end)))
    end
$$;
