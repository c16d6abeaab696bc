-- Routes for chest CT.
alter table route drop constraint route_pipeline_check;
alter table route add constraint route_pipeline_check check (pipeline in ('chest_radiograph', 'chest_ct'));
