-- When an object of the workup came again with the same bytes. Its sender was told Success by the file that was there, so
-- retention counts the days from then.
alter table workup add column last_duplicate_at timestamptz;

-- Retention takes the oldest first, by the last receipt of either kind.
drop index workup_last_object;
create index workup_last_receipt on workup (greatest(last_object_at, last_duplicate_at), id)
    where state in ('answered', 'not_routed');
