//! The Part 10 header that we put before received bytes (PS3.10 section 7.1), and reading it back.

use std::io::{self, Read};

use dicom_object::meta::{FileMetaTable, FileMetaTableBuilder};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ArchiveError, HeaderError};
use crate::types::{AeTitle, ObjectOrigin, Uid};

/// How this implementation names itself in files.
#[derive(Debug, Clone)]
pub struct ImplementationIds {
    /// (0002,0012), also the creator of the private information.
    pub class_uid: Uid,
    /// (0002,0013), at most 16 characters.
    pub version_name: String,
}

/// What the association says of an object before its bytes arrive.
#[derive(Debug, Clone)]
pub struct ObjectMeta {
    /// Affected SOP Class UID.
    pub sop_class_uid: Uid,
    /// Affected SOP Instance UID.
    pub sop_instance_uid: Uid,
    /// Transfer syntax of the presentation context.
    pub transfer_syntax_uid: Uid,
    /// Who sends it.
    pub origin: ObjectOrigin,
}

/// What (0002,0102) holds beside the AE titles, as JSON.
#[derive(Serialize, Deserialize)]
struct PrivateOrigin {
    peer_address: std::net::IpAddr,
    association_id: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    received_at: OffsetDateTime,
}

/// Preamble, prefix and file meta group.
pub(super) fn header(meta: &ObjectMeta, ids: &ImplementationIds) -> Result<Vec<u8>, ArchiveError> {
    let origin = &meta.origin;
    let private = PrivateOrigin {
        peer_address: origin.peer_address,
        association_id: origin.association_id,
        received_at: origin.received_at,
    };
    let mut private = serde_json::to_vec(&private).map_err(io::Error::other)?;
    if private.len() % 2 == 1 {
        private.push(b' ');
    }
    let table = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(meta.sop_class_uid.as_str())
        .media_storage_sop_instance_uid(meta.sop_instance_uid.as_str())
        .transfer_syntax(meta.transfer_syntax_uid.as_str())
        .implementation_class_uid(ids.class_uid.as_str())
        .implementation_version_name(ids.version_name.as_str())
        .source_application_entity_title(origin.calling_ae_title.as_str())
        .sending_application_entity_title(origin.calling_ae_title.as_str())
        .receiving_application_entity_title(origin.called_ae_title.as_str())
        .private_information_creator_uid(ids.class_uid.as_str())
        .private_information(private)
        .build()
        .map_err(io::Error::other)?;
    let mut bytes = vec![0; 128];
    bytes.extend_from_slice(b"DICM");
    table.write(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// The length of everything before the data set, as (0002,0000) gives it.
pub(super) fn header_bytes(reader: &mut impl Read) -> Result<u64, ArchiveError> {
    let mut start = [0; 144];
    reader.read_exact(&mut start)?;
    let (preamble_and_element, group_length) = start.split_at(140);
    if !preamble_and_element.ends_with(b"DICM\x02\x00\x00\x00UL\x04\x00") {
        return Err(HeaderError::FileMeta("it does not begin with a group length".to_owned()).into());
    }
    let group_length = group_length.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(144 + u64::from(group_length))
}

/// Reads a file of ours up to the start of the data set: transfer syntax and origin.
pub(super) fn read_meta(reader: &mut impl Read) -> Result<(Uid, ObjectOrigin), ArchiveError> {
    let mut preamble = [0; 128];
    reader.read_exact(&mut preamble)?;
    let table = FileMetaTable::from_reader(&mut *reader)
        .map_err(|error| HeaderError::FileMeta(format!("unreadable: {error}")))?;
    let missing = |what: &str| HeaderError::FileMeta(format!("no {what}: the file was not received by Hilum"));
    let ae_title = |title: Option<&str>, what: &str| {
        let title = title.ok_or_else(|| missing(what))?;
        AeTitle::new(title).map_err(|error| HeaderError::FileMeta(format!("{what}: {error}")))
    };
    let private = table.private_information.as_deref().ok_or_else(|| missing("private information (0002,0102)"))?;
    let private: PrivateOrigin = serde_json::from_slice(private.trim_ascii_end())
        .map_err(|error| HeaderError::FileMeta(format!("private information (0002,0102): {error}")))?;
    let transfer_syntax_uid = Uid::new(table.transfer_syntax())
        .map_err(|error| HeaderError::FileMeta(format!("transfer syntax: {error}")))?;
    let origin = ObjectOrigin {
        calling_ae_title: ae_title(table.sending_application_entity_title(), "sending AE title (0002,0017)")?,
        called_ae_title: ae_title(table.receiving_application_entity_title(), "receiving AE title (0002,0018)")?,
        peer_address: private.peer_address,
        association_id: private.association_id,
        received_at: private.received_at,
    };
    Ok((transfer_syntax_uid, origin))
}
