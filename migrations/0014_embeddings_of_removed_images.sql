-- Retention removes what was derived from images with them; until now their embeddings stayed.
delete from image_embedding e
using run r, workup w
where r.id = e.run_id and w.id = r.workup_id
  and not exists (select from instance i
                  where i.study_instance_uid = w.study_instance_uid and i.local_ae_title = w.local_ae_title
                    and i.removed_at is null);
