-- Requests other than C-STORE that are refused, such as a Storage Commitment list that cannot be read, are rows like the rest.
alter table refusal drop constraint refusal_kind_check;
alter table refusal add constraint refusal_kind_check check (kind in ('association', 'context', 'object', 'operation'));
