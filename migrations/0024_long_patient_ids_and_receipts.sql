-- A value in a btree may have 2.7 KB. A Patient ID may not have more than 64 characters, but peers send what they send,
-- and an object that is stored has to be indexed. A hash index holds no values.
drop index study_patient;
create index study_patient on study using hash (patient_id);

-- What retention counts from is any receipt: late objects that a route ignores and our own results that come back open
-- nothing either, and were removed within the hour where their study was old.
alter table workup rename column last_duplicate_at to last_other_receipt_at;
comment on column workup.last_other_receipt_at is
    'the latest receipt of what opened no revision: duplicates, late objects that the route ignores, own results';
update workup w set last_other_receipt_at = greatest(w.last_other_receipt_at, i.received_at)
from (select study_instance_uid, local_ae_title, max(received_at) as received_at from instance
      where removed_at is null group by 1, 2) i
where w.study_instance_uid = i.study_instance_uid and w.local_ae_title = i.local_ae_title
    and i.received_at > greatest(w.last_object_at, w.last_other_receipt_at);
