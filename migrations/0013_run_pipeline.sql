-- What the route of a run says that its bundle is for, so that a bundle of another pipeline is refused before it is run.
-- Empty for runs from before this migration: those are not checked.
alter table run
    add column pipeline text check (pipeline in ('chest_radiograph', 'chest_ct'));
