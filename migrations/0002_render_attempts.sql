-- Attempts to render a run's results, counted before each one: rendering decodes the images again, and what kills the
-- process there must not do so for ever.

alter table run add column render_attempts integer not null default 0;
