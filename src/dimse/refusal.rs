//! Why a request is refused, and the status that says so: the one place where errors become statuses. What an
//! application's handler refuses comes with a status of its own, as [`ServiceFailure`].

use super::status;

/// Why a request was not carried out: the DIMSE status and the Error Comment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {comment}", status::InWords(*.status))]
pub struct ServiceFailure {
    /// A failure status (see [`status`]).
    pub status: u16,
    /// For the peer's log; the wire holds its first 64 characters. No patient data.
    pub comment: String,
    /// What to do, where the status alone does not say it.
    pub remedy: Option<&'static str>,
}

/// What is wrong with a request, before or in place of a handler's own answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No Affected or Requested SOP Class UID, or not a UID.
    SopClassMissing,
    /// C-STORE of another SOP class than the presentation context's.
    SopClassNotOfContext,
    /// N-ACTION or N-EVENT-REPORT of another SOP class than the presentation context's.
    NoSuchSopClass,
    /// C-STORE without an Affected SOP Instance UID, or not a UID.
    SopInstanceMissing,
    /// Not the well-known instance of the service.
    NoSuchSopInstance,
    /// An action that the service does not have.
    NoSuchAction(u16),
    /// An event that the service does not have.
    NoSuchEvent(u16),
    /// The handler does not take part in the service.
    NotOffered,
    /// The operation needs a data set.
    DataSetMissing,
    /// The data set is longer than what we read of such a message, in bytes.
    DataSetTooLong(usize),
    /// The list has more instances than we read of one.
    TooManyInstances(usize),
    /// The data set says nothing that can be acted upon.
    BadDataSet(String),
    /// The handler did not read the data set that it says it stored.
    NotRead,
    /// The handler takes longer than a message may.
    TooSlow,
    /// The handler panicked.
    Panicked,
}

impl From<Refusal> for ServiceFailure {
    fn from(refusal: Refusal) -> Self {
        let (status, comment) = match refusal {
            Refusal::SopClassMissing => (status::MISTYPED_ARGUMENT, "SOP Class UID is missing or malformed".to_owned()),
            Refusal::SopClassNotOfContext => {
                (status::SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the one of the presentation context".to_owned())
            }
            Refusal::NoSuchSopClass => {
                (status::NO_SUCH_SOP_CLASS, "not the SOP class of the presentation context".to_owned())
            }
            Refusal::SopInstanceMissing => {
                (status::INVALID_SOP_INSTANCE, "Affected SOP Instance UID is missing or malformed".to_owned())
            }
            Refusal::NoSuchSopInstance => {
                (status::NO_SUCH_SOP_INSTANCE, "not the well-known instance of the service".to_owned())
            }
            Refusal::NoSuchAction(id) => (status::NO_SUCH_ACTION, format!("the service has no action {id}")),
            Refusal::NoSuchEvent(id) => (status::NO_SUCH_EVENT_TYPE, format!("the service has no event {id}")),
            Refusal::NotOffered => {
                (status::UNRECOGNIZED_OPERATION, "only C-ECHO, C-STORE and Storage Commitment are offered".to_owned())
            }
            Refusal::DataSetMissing => (status::MISTYPED_ARGUMENT, "the request has no data set".to_owned()),
            Refusal::DataSetTooLong(limit) => {
                (status::RESOURCE_LIMITATION, format!("more than {limit} bytes: split it"))
            }
            Refusal::TooManyInstances(limit) => {
                (status::RESOURCE_LIMITATION, format!("more than {limit} instances: split it"))
            }
            Refusal::BadDataSet(problem) => (status::INVALID_ARGUMENT_VALUE, problem),
            Refusal::NotRead => (status::PROCESSING_FAILURE, "the data set was not read to its end".to_owned()),
            Refusal::TooSlow => (status::PROCESSING_FAILURE, "it takes too long".to_owned()),
            Refusal::Panicked => (status::PROCESSING_FAILURE, "internal error".to_owned()),
        };
        Self { status, comment, remedy: None }
    }
}

impl ServiceFailure {
    /// A failure with `status` and `comment`.
    pub fn new(status: u16, comment: impl Into<String>) -> Self {
        Self { status, comment: comment.into(), remedy: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: &'static str) -> Self {
        Self { remedy: Some(remedy), ..self }
    }

    /// 0xA700: the sender should try again later.
    pub fn out_of_resources(comment: impl Into<String>) -> Self {
        Self::new(status::OUT_OF_RESOURCES, comment)
    }

    /// 0xC000: the data set is not readable.
    pub fn cannot_understand(comment: impl Into<String>) -> Self {
        Self::new(status::CANNOT_UNDERSTAND, comment)
    }

    /// 0xA900: the data set is not what the command says.
    pub fn data_set_does_not_match(comment: impl Into<String>) -> Self {
        Self::new(status::DATA_SET_DOES_NOT_MATCH_SOP_CLASS, comment)
    }

    /// 0x0115: a report on what this application has not asked.
    #[must_use]
    pub fn unknown_transaction() -> Self {
        let remedy = "nothing to mend if the peer reports on what an earlier installation has asked; otherwise let it \
                      report to the node that has asked";
        Self::new(status::INVALID_ARGUMENT_VALUE, "we have not asked you under this Transaction UID")
            .with_remedy(remedy)
    }

    /// 0x0110: nothing is promised that could be forgotten.
    #[must_use]
    pub fn database_away() -> Self {
        Self::processing_failure("the database cannot be reached: try again later")
            .with_remedy("see to it that Postgres answers; the peer has to ask again")
    }

    /// 0x0110: our own fault.
    pub fn processing_failure(comment: impl Into<String>) -> Self {
        Self::new(status::PROCESSING_FAILURE, comment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_status() {
        for (refusal, expected) in [
            (Refusal::SopClassMissing, 0x0212),
            (Refusal::SopClassNotOfContext, 0x0122),
            (Refusal::NoSuchSopClass, 0x0118),
            (Refusal::SopInstanceMissing, 0x0117),
            (Refusal::NoSuchSopInstance, 0x0112),
            (Refusal::NoSuchAction(2), 0x0123),
            (Refusal::NoSuchEvent(3), 0x0113),
            (Refusal::NotOffered, 0x0211),
            (Refusal::DataSetMissing, 0x0212),
            (Refusal::DataSetTooLong(10), 0x0213),
            (Refusal::TooManyInstances(10), 0x0213),
            (Refusal::BadDataSet("no Transaction UID".to_owned()), 0x0115),
            (Refusal::NotRead, 0x0110),
            (Refusal::TooSlow, 0x0110),
            (Refusal::Panicked, 0x0110),
        ] {
            let failure = ServiceFailure::from(refusal);
            assert_eq!(failure.status, expected, "{failure}");
            assert_eq!(status::category(failure.status), status::Category::Failure);
            assert!(!status::meaning(failure.status).contains("without a standard meaning"), "{failure}");
            assert!(failure.comment.len() <= 64, "{failure}");
        }
    }
}
