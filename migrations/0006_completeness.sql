-- Completeness by evidence, late images, duplicates.

alter table route
    add column released_quiet_seconds     integer check (released_quiet_seconds > 0),
    add column lost_quiet_seconds         integer check (lost_quiet_seconds > 0),
    add column required                   text,
    add column late_images                text not null default 'new_revision'
                                          check (late_images in ('new_revision', 'ignore')),
    add column late_images_within_seconds integer check (late_images_within_seconds > 0);

alter table peer
    add column count_at_source  boolean not null default false,
    add column duplicates       text not null default 'keep_version' check (duplicates in ('keep_version', 'refuse')),
    add column duplicate_status integer check (duplicate_status between 1 and 65535);

alter table workup
    add column completeness_kind text check (completeness_kind in
        ('quiet', 'released', 'learned', 'lost', 'commitment', 'source_count', 'maximum_wait', 'forced')),
    -- what the decision was made from, for machines
    add column completeness_data jsonb,
    add column completed_at      timestamptz,
    -- why it still waits, where there is more to say than "it is not quiet yet"
    add column waiting_kind      text,
    -- a person wants it complete: who, and with what
    add column forced_by         text,
    -- what the sender answered when it was asked for the number of instances: one of count and words
    add column source_asked_at   timestamptz,
    add column source_count      bigint,
    add column source_words      text;

-- What each sender's studies have taught us: the longest silence between two associations within one study, in
-- seconds, of its newest studies, the newest last.
create table sender_habit (
    calling_ae_title    text primary key,
    longest_gap_seconds double precision[] not null,
    updated_at          timestamptz not null default now()
);
