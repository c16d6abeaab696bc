-- What each voxel of a measured CT is: segmentations are rendered from it.
alter table run add column masks bytea;
-- It is compressed as it comes; only rendering reads it, so it lies outside of its row.
alter table run alter column masks set storage external;

comment on column run.masks is
    'of a measured CT: a byte 1 and the zlib stream of columns, rows, slices (32 bits each, little endian) and a byte of bits for each voxel; null when its images were removed';
