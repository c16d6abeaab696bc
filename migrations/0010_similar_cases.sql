-- Similar cases: what the networks made of images, to be compared with cosine distance. Vectors are 32-bit floats, little
-- endian, of length 1. Those of different bundle digests or embedding methods are never compared.

-- The secret that turns patients and studies of the reference library into pseudonyms (HMAC-SHA256).
create table pseudonym_key (
    singleton boolean primary key default true check (singleton),
    key       bytea not null check (length(key) = 32)
);

-- The reference library. It holds no name, no Patient ID, no UID and no date of a patient.
create table similar_case (
    -- derived from bundle digest, method and file: the same file is the same case
    case_id          text primary key,
    bundle_digest    bytea not null check (length(bundle_digest) = 32),
    method           text not null,
    file_sha256      bytea not null check (length(file_sha256) = 32),
    patient          bytea not null check (length(patient) = 32),
    study            bytea not null check (length(study) = 32),
    label            text not null check (label <> ''),
    cohort           text not null check (cohort <> ''),
    view             text not null,
    source           text not null,
    embedding        bytea not null check (length(embedding) > 0 and length(embedding) % 4 = 0),
    embedding_sha256 bytea not null check (length(embedding_sha256) = 32),
    imported_at      timestamptz not null default now(),
    unique (bundle_digest, method, file_sha256)
);

-- Counts every change of the library, in the transaction of the change: who holds a copy compares.
create table similar_case_version (
    singleton boolean primary key default true check (singleton),
    version   bigint not null
);
insert into similar_case_version (version) values (0);

-- The images that this node has analysed: they are found again as earlier studies of their patient, nowhere else.
create table image_embedding (
    run_id           uuid not null references run on delete cascade,
    sop_instance_uid text not null,
    method           text not null,
    embedding        bytea not null check (length(embedding) > 0 and length(embedding) % 4 = 0),
    primary key (run_id, sop_instance_uid)
);
create index study_patient on study (patient_id);
