//! DIMSE command sets (PS3.7 chapters 9 and 10, annex E): those of the services that we offer or use are typed, all
//! others recognised well enough to be refused politely. Pure: bytes in, bytes out.

use std::borrow::Cow;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;
use dicom_transfer_syntax_registry::entries::IMPLICIT_VR_LITTLE_ENDIAN;

use crate::types::Uid;

/// Longest command set that is read, in bytes. Real ones have a few hundred.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;

/// Command Data Set Type: no data set follows. Any other value means that one does (PS3.7 table 9.1-1).
const NO_DATA_SET: u16 = 0x0101;
/// Command Data Set Type that we write when a data set follows.
const WITH_DATA_SET: u16 = 0x0001;

const C_STORE_RQ: u16 = 0x0001;
pub(crate) const C_FIND_RQ: u16 = 0x0020;
const C_ECHO_RQ: u16 = 0x0030;
pub(crate) const N_EVENT_REPORT_RQ: u16 = 0x0100;
pub(crate) const N_ACTION_RQ: u16 = 0x0130;
const C_CANCEL_RQ: u16 = 0x0FFF;

/// The operation of a request's Command Field (PS3.7 section E.1).
pub(crate) fn operation_name(request_field: u16) -> Cow<'static, str> {
    Cow::Borrowed(match request_field {
        C_STORE_RQ => "C-STORE",
        0x0010 => "C-GET",
        C_FIND_RQ => "C-FIND",
        0x0021 => "C-MOVE",
        C_ECHO_RQ => "C-ECHO",
        N_EVENT_REPORT_RQ => "N-EVENT-REPORT",
        0x0110 => "N-GET",
        0x0120 => "N-SET",
        N_ACTION_RQ => "N-ACTION",
        0x0140 => "N-CREATE",
        0x0150 => "N-DELETE",
        other => return Cow::Owned(format!("operation {other:#06X}")),
    })
}
/// Set in the Command Field of responses.
const RESPONSE: u16 = 0x8000;

/// Longest Error Comment (VR LO), in characters.
const MAX_ERROR_COMMENT: usize = 64;

/// (0000,0700) Priority of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// 0002H
    Low,
    /// 0000H
    #[default]
    Medium,
    /// 0001H
    High,
}

/// Who asked for the C-MOVE that a C-STORE belongs to: (0000,1030) and (0000,1031).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveOriginator {
    /// Its AE title, as sent, without padding.
    pub ae_title: String,
    /// The message id of its C-MOVE.
    pub message_id: Option<u16>,
}

/// A C-STORE-RQ (PS3.7 section 9.3.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreRequestCommand {
    pub message_id: u16,
    /// As sent, without padding; empty when missing.
    pub affected_sop_class_uid: String,
    /// As sent, without padding; empty when missing.
    pub affected_sop_instance_uid: String,
    pub priority: Priority,
    pub move_originator: Option<MoveOriginator>,
}

/// An N-ACTION-RQ (PS3.7 section 10.1.4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActionRequestCommand {
    pub message_id: u16,
    /// As sent, without padding; empty when missing.
    pub requested_sop_class_uid: String,
    /// As sent, without padding; empty when missing.
    pub requested_sop_instance_uid: String,
    /// 0, which no service uses, when missing.
    pub action_type_id: u16,
}

/// An N-EVENT-REPORT-RQ (PS3.7 section 10.1.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventReportCommand {
    pub message_id: u16,
    /// As sent, without padding; empty when missing.
    pub affected_sop_class_uid: String,
    /// As sent, without padding; empty when missing.
    pub affected_sop_instance_uid: String,
    /// 0, which no service uses, when missing.
    pub event_type_id: u16,
}

/// What any response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseCommand {
    /// Command Field of the request that it answers.
    pub request_field: u16,
    pub responds_to: u16,
    pub status: u16,
    pub error_comment: Option<String>,
    pub affected_sop_class_uid: Option<String>,
    pub affected_sop_instance_uid: Option<String>,
    /// Of N-EVENT-REPORT only.
    pub event_type_id: Option<u16>,
    /// Of N-ACTION only.
    pub action_type_id: Option<u16>,
}

/// A DIMSE command set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    EchoRequest {
        message_id: u16,
    },
    StoreRequest(StoreRequestCommand),
    FindRequest {
        message_id: u16,
        /// As sent, without padding; empty when missing.
        affected_sop_class_uid: String,
    },
    /// C-CANCEL-RQ: has no response.
    CancelRequest {
        /// Message id of the request to cancel; 0 when missing.
        responds_to: u16,
    },
    ActionRequest(ActionRequestCommand),
    EventReportRequest(EventReportCommand),
    /// An operation that we do not offer.
    UnknownRequest {
        command_field: u16,
        message_id: u16,
        affected_sop_class_uid: Option<String>,
    },
    Response(ResponseCommand),
}

/// A command set as it travels: the command, and whether a data set follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandSet {
    pub command: Command,
    pub has_data_set: bool,
}

/// Why bytes are not a command set that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("the command set is longer than {MAX_COMMAND_BYTES} bytes")]
    TooLong,
    #[error("the command set is malformed at byte {0}: an element is cut off or not of group 0000")]
    Malformed(usize),
    #[error("the command set cannot be parsed: {0}")]
    Unparsable(String),
    #[error("the command set has no {0}")]
    Missing(&'static str),
}

impl ResponseCommand {
    /// The response to `request_field` with `status` and, for failures, an Error Comment cut to what VR LO holds.
    pub(crate) fn new(request_field: u16, responds_to: u16, status: u16, comment: &str) -> Self {
        Self {
            request_field,
            responds_to,
            status,
            error_comment: error_comment(comment),
            affected_sop_class_uid: None,
            affected_sop_instance_uid: None,
            event_type_id: None,
            action_type_id: None,
        }
    }

    pub(crate) fn echo(message_id: u16) -> Self {
        Self {
            affected_sop_class_uid: Some(dicom_dictionary_std::uids::VERIFICATION.to_owned()),
            ..Self::new(C_ECHO_RQ, message_id, super::status::SUCCESS, "")
        }
    }

    pub(crate) fn store(request: &StoreRequestCommand, status: u16, comment: &str) -> Self {
        Self {
            affected_sop_class_uid: valid_uid(&request.affected_sop_class_uid),
            affected_sop_instance_uid: valid_uid(&request.affected_sop_instance_uid),
            ..Self::new(C_STORE_RQ, request.message_id, status, comment)
        }
    }

    pub(crate) fn action(request: &ActionRequestCommand, status: u16, comment: &str) -> Self {
        Self {
            affected_sop_class_uid: valid_uid(&request.requested_sop_class_uid),
            affected_sop_instance_uid: valid_uid(&request.requested_sop_instance_uid),
            action_type_id: Some(request.action_type_id),
            ..Self::new(N_ACTION_RQ, request.message_id, status, comment)
        }
    }

    pub(crate) fn event_report(request: &EventReportCommand, status: u16, comment: &str) -> Self {
        Self {
            affected_sop_class_uid: valid_uid(&request.affected_sop_class_uid),
            affected_sop_instance_uid: valid_uid(&request.affected_sop_instance_uid),
            event_type_id: Some(request.event_type_id),
            ..Self::new(N_EVENT_REPORT_RQ, request.message_id, status, comment)
        }
    }

    /// The refusal of an operation that we do not offer.
    pub(crate) fn unrecognized(
        command_field: u16,
        message_id: u16,
        affected_sop_class_uid: Option<&str>,
        status: u16,
        error_comment: &str,
    ) -> Self {
        Self {
            affected_sop_class_uid: affected_sop_class_uid.and_then(valid_uid),
            ..Self::new(command_field, message_id, status, error_comment)
        }
    }

    pub(crate) fn is_echo(&self) -> bool {
        self.request_field == C_ECHO_RQ
    }

    pub(crate) fn is_store(&self) -> bool {
        self.request_field == C_STORE_RQ
    }

    pub(crate) fn is_find(&self) -> bool {
        self.request_field == C_FIND_RQ
    }

    pub(crate) fn is_action(&self) -> bool {
        self.request_field == N_ACTION_RQ
    }

    pub(crate) fn is_event_report(&self) -> bool {
        self.request_field == N_EVENT_REPORT_RQ
    }
}

fn valid_uid(text: &str) -> Option<String> {
    Uid::new(text).ok().map(String::from)
}

/// At most 64 characters of the default repertoire without backslash (PS3.5, VR LO); `None` when nothing is left.
fn error_comment(text: &str) -> Option<String> {
    let comment: String = text
        .chars()
        .map(|c| if (' '..='~').contains(&c) && c != '\\' { c } else { '?' })
        .take(MAX_ERROR_COMMENT)
        .collect();
    let comment = comment.trim();
    (!comment.is_empty()).then(|| comment.to_owned())
}

impl CommandSet {
    pub(crate) fn without_data_set(command: Command) -> Self {
        Self { command, has_data_set: false }
    }

    pub(crate) fn response(response: ResponseCommand) -> Self {
        Self::without_data_set(Command::Response(response))
    }

    /// Decodes a whole command set (Implicit VR Little Endian, PS3.7 section 6.3.1).
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CommandError> {
        check_structure(bytes)?;
        let set = InMemDicomObject::read_dataset_with_ts(bytes, &IMPLICIT_VR_LITTLE_ENDIAN.erased())
            .map_err(|error| CommandError::Unparsable(error.to_string()))?;
        let command_field = number(&set, tags::COMMAND_FIELD).ok_or(CommandError::Missing("Command Field"))?;
        let data_set_type =
            number(&set, tags::COMMAND_DATA_SET_TYPE).ok_or(CommandError::Missing("Command Data Set Type"))?;
        let message_id = || number(&set, tags::MESSAGE_ID).ok_or(CommandError::Missing("Message ID"));
        let command = match command_field {
            C_ECHO_RQ => Command::EchoRequest { message_id: message_id()? },
            C_STORE_RQ => Command::StoreRequest(StoreRequestCommand {
                message_id: message_id()?,
                affected_sop_class_uid: text(&set, tags::AFFECTED_SOP_CLASS_UID).unwrap_or_default(),
                affected_sop_instance_uid: text(&set, tags::AFFECTED_SOP_INSTANCE_UID).unwrap_or_default(),
                priority: match number(&set, tags::PRIORITY) {
                    Some(1) => Priority::High,
                    Some(2) => Priority::Low,
                    _ => Priority::Medium,
                },
                move_originator: text(&set, tags::MOVE_ORIGINATOR_APPLICATION_ENTITY_TITLE).map(|ae_title| {
                    MoveOriginator { ae_title, message_id: number(&set, tags::MOVE_ORIGINATOR_MESSAGE_ID) }
                }),
            }),
            C_FIND_RQ => Command::FindRequest {
                message_id: message_id()?,
                affected_sop_class_uid: text(&set, tags::AFFECTED_SOP_CLASS_UID).unwrap_or_default(),
            },
            C_CANCEL_RQ => Command::CancelRequest {
                responds_to: number(&set, tags::MESSAGE_ID_BEING_RESPONDED_TO).unwrap_or_default(),
            },
            N_ACTION_RQ => Command::ActionRequest(ActionRequestCommand {
                message_id: message_id()?,
                requested_sop_class_uid: text(&set, tags::REQUESTED_SOP_CLASS_UID).unwrap_or_default(),
                requested_sop_instance_uid: text(&set, tags::REQUESTED_SOP_INSTANCE_UID).unwrap_or_default(),
                action_type_id: number(&set, tags::ACTION_TYPE_ID).unwrap_or_default(),
            }),
            N_EVENT_REPORT_RQ => Command::EventReportRequest(EventReportCommand {
                message_id: message_id()?,
                affected_sop_class_uid: text(&set, tags::AFFECTED_SOP_CLASS_UID).unwrap_or_default(),
                affected_sop_instance_uid: text(&set, tags::AFFECTED_SOP_INSTANCE_UID).unwrap_or_default(),
                event_type_id: number(&set, tags::EVENT_TYPE_ID).unwrap_or_default(),
            }),
            response if response & RESPONSE != 0 => Command::Response(ResponseCommand {
                request_field: response & !RESPONSE,
                responds_to: number(&set, tags::MESSAGE_ID_BEING_RESPONDED_TO)
                    .ok_or(CommandError::Missing("Message ID Being Responded To"))?,
                status: number(&set, tags::STATUS).ok_or(CommandError::Missing("Status"))?,
                error_comment: text(&set, tags::ERROR_COMMENT),
                affected_sop_class_uid: text(&set, tags::AFFECTED_SOP_CLASS_UID),
                affected_sop_instance_uid: text(&set, tags::AFFECTED_SOP_INSTANCE_UID),
                event_type_id: number(&set, tags::EVENT_TYPE_ID),
                action_type_id: number(&set, tags::ACTION_TYPE_ID),
            }),
            command_field => Command::UnknownRequest {
                command_field,
                message_id: message_id()?,
                affected_sop_class_uid: text(&set, tags::AFFECTED_SOP_CLASS_UID),
            },
        };
        Ok(Self { command, has_data_set: data_set_type != NO_DATA_SET })
    }

    /// Encodes the command set with its group length.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CommandError> {
        let us = |tag: Tag, value: u16| DataElement::new(tag, VR::US, PrimitiveValue::from(value));
        let ui = |tag: Tag, uid: &str| DataElement::new(tag, VR::UI, PrimitiveValue::from(uid));
        let mut elements = match &self.command {
            Command::EchoRequest { message_id } => vec![
                ui(tags::AFFECTED_SOP_CLASS_UID, dicom_dictionary_std::uids::VERIFICATION),
                us(tags::COMMAND_FIELD, C_ECHO_RQ),
                us(tags::MESSAGE_ID, *message_id),
            ],
            Command::StoreRequest(request) => {
                let mut elements = vec![
                    ui(tags::AFFECTED_SOP_CLASS_UID, &request.affected_sop_class_uid),
                    us(tags::COMMAND_FIELD, C_STORE_RQ),
                    us(tags::MESSAGE_ID, request.message_id),
                    us(
                        tags::PRIORITY,
                        match request.priority {
                            Priority::Medium => 0,
                            Priority::High => 1,
                            Priority::Low => 2,
                        },
                    ),
                    ui(tags::AFFECTED_SOP_INSTANCE_UID, &request.affected_sop_instance_uid),
                ];
                if let Some(originator) = &request.move_originator {
                    elements.push(DataElement::new(
                        tags::MOVE_ORIGINATOR_APPLICATION_ENTITY_TITLE,
                        VR::AE,
                        PrimitiveValue::from(originator.ae_title.as_str()),
                    ));
                    if let Some(message_id) = originator.message_id {
                        elements.push(us(tags::MOVE_ORIGINATOR_MESSAGE_ID, message_id));
                    }
                }
                elements
            }
            Command::FindRequest { message_id, affected_sop_class_uid } => vec![
                ui(tags::AFFECTED_SOP_CLASS_UID, affected_sop_class_uid),
                us(tags::COMMAND_FIELD, C_FIND_RQ),
                us(tags::MESSAGE_ID, *message_id),
                us(tags::PRIORITY, 0),
            ],
            Command::CancelRequest { responds_to } => {
                vec![us(tags::COMMAND_FIELD, C_CANCEL_RQ), us(tags::MESSAGE_ID_BEING_RESPONDED_TO, *responds_to)]
            }
            Command::ActionRequest(request) => vec![
                ui(tags::REQUESTED_SOP_CLASS_UID, &request.requested_sop_class_uid),
                us(tags::COMMAND_FIELD, N_ACTION_RQ),
                us(tags::MESSAGE_ID, request.message_id),
                ui(tags::REQUESTED_SOP_INSTANCE_UID, &request.requested_sop_instance_uid),
                us(tags::ACTION_TYPE_ID, request.action_type_id),
            ],
            Command::EventReportRequest(request) => vec![
                ui(tags::AFFECTED_SOP_CLASS_UID, &request.affected_sop_class_uid),
                us(tags::COMMAND_FIELD, N_EVENT_REPORT_RQ),
                us(tags::MESSAGE_ID, request.message_id),
                ui(tags::AFFECTED_SOP_INSTANCE_UID, &request.affected_sop_instance_uid),
                us(tags::EVENT_TYPE_ID, request.event_type_id),
            ],
            Command::UnknownRequest { command_field, message_id, affected_sop_class_uid } => {
                let mut elements = vec![us(tags::COMMAND_FIELD, *command_field), us(tags::MESSAGE_ID, *message_id)];
                elements.extend(affected_sop_class_uid.as_deref().map(|uid| ui(tags::AFFECTED_SOP_CLASS_UID, uid)));
                elements
            }
            Command::Response(response) => {
                let mut elements = vec![
                    us(tags::COMMAND_FIELD, response.request_field | RESPONSE),
                    us(tags::MESSAGE_ID_BEING_RESPONDED_TO, response.responds_to),
                    us(tags::STATUS, response.status),
                ];
                let uids = [
                    (tags::AFFECTED_SOP_CLASS_UID, &response.affected_sop_class_uid),
                    (tags::AFFECTED_SOP_INSTANCE_UID, &response.affected_sop_instance_uid),
                ];
                elements.extend(uids.into_iter().filter_map(|(tag, uid)| uid.as_deref().map(|uid| ui(tag, uid))));
                elements.extend(
                    response
                        .error_comment
                        .as_deref()
                        .map(|comment| DataElement::new(tags::ERROR_COMMENT, VR::LO, PrimitiveValue::from(comment))),
                );
                elements.extend(response.event_type_id.map(|id| us(tags::EVENT_TYPE_ID, id)));
                elements.extend(response.action_type_id.map(|id| us(tags::ACTION_TYPE_ID, id)));
                elements
            }
        };
        let data_set_type = if self.has_data_set { WITH_DATA_SET } else { NO_DATA_SET };
        elements.push(us(tags::COMMAND_DATA_SET_TYPE, data_set_type));
        let mut bytes = Vec::with_capacity(256);
        InMemDicomObject::command_from_element_iter(elements)
            .write_dataset_with_ts(&mut bytes, &IMPLICIT_VR_LITTLE_ENDIAN.erased())
            .map_err(|error| CommandError::Unparsable(error.to_string()))?;
        Ok(bytes)
    }
}

/// Walks the elements before dicom-object may: it reserves what a length field asks for, 4 GiB included, and it
/// recurses into sequences. Command sets hold neither: only plain elements of group 0000 (PS3.7 section 6.3.1).
fn check_structure(bytes: &[u8]) -> Result<(), CommandError> {
    if bytes.len() > MAX_COMMAND_BYTES {
        return Err(CommandError::TooLong);
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let malformed = CommandError::Malformed(bytes.len() - rest.len());
        let Some((&[group_low, group_high, _, _, l0, l1, l2, l3], value)) = rest.split_first_chunk() else {
            return Err(malformed);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if (group_low, group_high) != (0, 0) || length > value.len() {
            return Err(malformed);
        }
        rest = &value[length..];
    }
    Ok(())
}

fn number(set: &InMemDicomObject, tag: Tag) -> Option<u16> {
    set.get(tag)?.to_int().ok()
}

/// Without padding; `None` when absent or empty.
fn text(set: &InMemDicomObject, tag: Tag) -> Option<String> {
    let text = set.get(tag)?.to_str().ok()?;
    let text = text.trim_matches(['\0', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store_request() -> StoreRequestCommand {
        StoreRequestCommand {
            message_id: 7,
            affected_sop_class_uid: "1.2.840.10008.5.1.4.1.1.2".to_owned(),
            affected_sop_instance_uid: "1.2.3.4.5".to_owned(),
            priority: Priority::High,
            move_originator: Some(MoveOriginator { ae_title: "MOVER".to_owned(), message_id: Some(3) }),
        }
    }

    fn action() -> ActionRequestCommand {
        ActionRequestCommand {
            message_id: 8,
            requested_sop_class_uid: "1.2.840.10008.1.20.1".to_owned(),
            requested_sop_instance_uid: "1.2.840.10008.1.20.1.1".to_owned(),
            action_type_id: 1,
        }
    }

    fn event_report() -> EventReportCommand {
        EventReportCommand {
            message_id: 3,
            affected_sop_class_uid: "1.2.840.10008.1.20.1".to_owned(),
            affected_sop_instance_uid: "1.2.840.10008.1.20.1.1".to_owned(),
            event_type_id: 2,
        }
    }

    #[test]
    fn command_sets_round_trip() {
        let response = ResponseCommand::store(&store_request(), 0xA700, "no space left");
        for set in [
            CommandSet::without_data_set(Command::EchoRequest { message_id: 1 }),
            CommandSet { command: Command::StoreRequest(store_request()), has_data_set: true },
            CommandSet {
                command: Command::FindRequest { message_id: 2, affected_sop_class_uid: "1.2.3".to_owned() },
                has_data_set: true,
            },
            CommandSet::without_data_set(Command::CancelRequest { responds_to: 2 }),
            CommandSet { command: Command::ActionRequest(action()), has_data_set: true },
            CommandSet::response(ResponseCommand::action(&action(), 0x0110, "Postgres is away")),
            CommandSet { command: Command::EventReportRequest(event_report()), has_data_set: true },
            CommandSet::response(ResponseCommand::event_report(&event_report(), 0x0115, "no such transaction")),
            CommandSet::response(ResponseCommand::unrecognized(0x0140, 4, Some("1.2.3"), 0x0211, "not offered")),
            CommandSet::response(ResponseCommand::echo(65535)),
            CommandSet::response(response),
            CommandSet {
                command: Command::UnknownRequest {
                    command_field: 0x0021,
                    message_id: 9,
                    affected_sop_class_uid: Some("1.2.840.10008.5.1.4.1.2.2.2".to_owned()),
                },
                has_data_set: true,
            },
        ] {
            let bytes = set.encode().unwrap();
            assert_eq!(bytes.len() % 2, 0);
            assert_eq!(CommandSet::decode(&bytes).unwrap(), set);
        }
    }

    #[test]
    fn the_encoding_is_the_standards() {
        let bytes = CommandSet::without_data_set(Command::EchoRequest { message_id: 0x0102 }).encode().unwrap();
        let mut expected = Vec::new();
        let mut element = |tag: u16, value: &[u8]| {
            expected.extend_from_slice(&[0, 0]);
            expected.extend_from_slice(&tag.to_le_bytes());
            expected.extend_from_slice(&(value.len() as u32).to_le_bytes());
            expected.extend_from_slice(value);
        };
        element(0x0000, &[56, 0, 0, 0]);
        element(0x0002, b"1.2.840.10008.1.1\0");
        element(0x0100, &[0x30, 0]);
        element(0x0110, &[0x02, 0x01]);
        element(0x0800, &[0x01, 0x01]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn hostile_command_sets_are_refused_before_they_cost_anything() {
        // 4 GiB announced
        let huge = [0, 0, 0, 1, 0xFC, 0xFF, 0xFF, 0xFF, 1, 2];
        assert_eq!(CommandSet::decode(&huge), Err(CommandError::Malformed(0)));
        // a sequence of undefined length from another group, nested for ever
        let nested = [0x40, 0x00, 0x30, 0xA7, 0xFF, 0xFF, 0xFF, 0xFF].repeat(1000);
        assert_eq!(CommandSet::decode(&nested), Err(CommandError::Malformed(0)));
        assert_eq!(CommandSet::decode(&vec![0; MAX_COMMAND_BYTES + 8]), Err(CommandError::TooLong));
        assert_eq!(CommandSet::decode(&[0, 0, 0]), Err(CommandError::Malformed(0)));
        assert_eq!(CommandSet::decode(&[]), Err(CommandError::Missing("Command Field")));
    }

    #[test]
    fn required_fields_are_required_and_others_forgiven() {
        let element = |tag: u16, value: u16| {
            let mut bytes = vec![0, 0];
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&[2, 0, 0, 0]);
            bytes.extend_from_slice(&value.to_le_bytes());
            bytes
        };
        let echo = [element(0x0100, 0x0030), element(0x0110, 5), element(0x0800, 0x0101)].concat();
        // no group length, no SOP class: understood all the same
        assert_eq!(CommandSet::decode(&echo).unwrap().command, Command::EchoRequest { message_id: 5 });
        let without_id = [element(0x0100, 0x0030), element(0x0800, 0x0101)].concat();
        assert_eq!(CommandSet::decode(&without_id), Err(CommandError::Missing("Message ID")));
        let without_type = [element(0x0100, 0x0030), element(0x0110, 5)].concat();
        assert_eq!(CommandSet::decode(&without_type), Err(CommandError::Missing("Command Data Set Type")));
        let response = [element(0x0100, 0x8001), element(0x0120, 5), element(0x0800, 0x0101)].concat();
        assert_eq!(CommandSet::decode(&response), Err(CommandError::Missing("Status")));
    }

    #[test]
    fn error_comments_fit_their_vr() {
        assert_eq!(error_comment("naïve \\ \n").as_deref(), Some("na?ve ? ?"));
        assert_eq!(error_comment(&"x".repeat(100)).unwrap().len(), 64);
        assert_eq!(error_comment("  "), None);
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = CommandSet::decode(&bytes);
        }

        #[test]
        fn decoding_damaged_command_sets_never_panics(at in 0usize..200, byte: u8) {
            let set = CommandSet { command: Command::StoreRequest(store_request()), has_data_set: true };
            let mut bytes = set.encode().unwrap();
            let n_bytes = bytes.len();
            bytes[at % n_bytes] = byte;
            let _ = CommandSet::decode(&bytes);
        }
    }
}
