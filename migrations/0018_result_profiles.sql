-- What a destination gets of the results, and in which form. An empty object is the default profile.
alter table destination add column results jsonb not null default '{}';

-- Objects of more kinds than reports and pictures.
alter table result drop constraint result_kind_check;
alter table result add constraint result_kind_check check (kind in ('sr', 'sr_text', 'sc', 'seg', 'pr', 'ko'));
