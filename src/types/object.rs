//! What is known of one received DICOM object.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{AeTitle, Sha256Digest, Uid};

/// Who sent an object, to whom, and how it travelled. Kept in the file meta of the stored file
/// (PS3.10 section 7.1: (0002,0016), (0002,0017), (0002,0018) and private information), so that the index can
/// be rebuilt from the files alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectOrigin {
    /// The sender's AE title.
    pub calling_ae_title: AeTitle,
    /// Our AE title that it was sent to.
    pub called_ae_title: AeTitle,
    /// The sender's network address.
    pub peer_address: IpAddr,
    /// The association that carried it.
    pub association_id: Uuid,
    /// When it began to arrive.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
}

/// Attributes of the data set that Hilum indexes and routes by. Texts are decoded from the object's
/// Specific Character Set; an attribute that is absent or empty is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectHeader {
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// (0020,000D)
    pub study_instance_uid: Uid,
    /// (0020,000E)
    pub series_instance_uid: Uid,
    /// (0008,0060)
    pub modality: Option<String>,
    /// (0010,0020), patient data: never logged
    pub patient_id: Option<String>,
    /// (0010,0010), patient data: never logged
    pub patient_name: Option<String>,
    /// (0010,0030) as written, patient data: never logged
    pub patient_birth_date: Option<String>,
    /// (0010,0040)
    pub patient_sex: Option<String>,
    /// (0008,0050)
    pub accession_number: Option<String>,
    /// (0008,0020) as written
    pub study_date: Option<String>,
    /// (0008,0030) as written
    pub study_time: Option<String>,
    /// (0008,1030)
    pub study_description: Option<String>,
    /// (0020,0011)
    pub series_number: Option<i64>,
    /// (0008,103E)
    pub series_description: Option<String>,
    /// (0020,0013)
    pub instance_number: Option<i64>,
    /// (0018,0015)
    pub body_part_examined: Option<String>,
    /// (0018,1002) of the equipment that made the object
    pub device_uid: Option<Uid>,
}

/// An object that the archive has made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// The archive's name of the file; relative, made by us, never from a peer's UID.
    pub archive_key: String,
    /// SHA-256 of the data set bytes as received (without the Part 10 header).
    pub sha256: Sha256Digest,
    /// Size of the data set in bytes.
    pub size_bytes: u64,
    /// Transfer syntax of the data set.
    pub transfer_syntax_uid: Uid,
    /// Who sent it.
    pub origin: ObjectOrigin,
    /// What it says of itself.
    pub header: ObjectHeader,
}
