-- When an object of the workup came again with the same bytes. Its sender was told Success by the file that was there, so
-- retention counts the days from then.
alter table workup add column last_duplicate_at timestamptz;
