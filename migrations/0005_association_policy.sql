-- What associations of a local AE title or of a peer may do, and how peers are known over TLS.

alter table local_ae
    -- an AssociationPolicy; hashes of passcodes are Argon2, never passcodes
    add column policy jsonb not null default '{}';

alter table peer
    add column policy                 jsonb not null default '{}',
    add column tls                    boolean not null default false,
    add column require_tls            boolean not null default false,
    add column tls_certificate_sha256 text[] not null default '{}',
    add column tls_subject_name       text;
