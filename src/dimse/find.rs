//! C-FIND as SCU (PS3.4 annex C, Study Root): matches one after the other, with limits, and C-CANCEL.

use dicom_dictionary_std::{tags, uids};
use tokio::time::Instant;

use super::{
    command::{Command, CommandSet, ResponseCommand},
    data_set::Encoding,
    identifier::{FindQuery, Identifier, QueryLevel},
    requestor::{Association, AssociationRequestor, RequestError},
    status,
};
use crate::types::Uid;

const FIND: &str = uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND;

/// How much an answer to a query may hold. What comes beyond is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FindLimits {
    /// Matches.
    pub max_matches: usize,
    /// Bytes of one identifier; a longer one ends the association.
    pub max_identifier_bytes: usize,
    /// Bytes of all identifiers together.
    pub max_bytes: usize,
}

impl Default for FindLimits {
    fn default() -> Self {
        Self { max_matches: 10_000, max_identifier_bytes: 256 * 1024, max_bytes: 64 * 1024 * 1024 }
    }
}

/// How a query ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindEnd {
    /// (0000,0900) of the final response: success, cancelled, or a failure (see [`status`]).
    pub status: u16,
    /// (0000,0902); may hold anything.
    pub error_comment: Option<String>,
    /// We cancelled because of the [`FindLimits`]: there may be more matches.
    pub limit_reached: bool,
}

/// The matches of a query as they arrive: read to the end, or [`FindMatches::cancel`]. Dropped before that, the
/// association is of no more use.
pub struct FindMatches<'a> {
    association: &'a mut Association,
    context_id: u8,
    encoding: Encoding,
    message_id: u16,
    limits: FindLimits,
    n_matches: usize,
    n_bytes: usize,
    end: Option<FindEnd>,
}

impl AssociationRequestor {
    /// Proposes the Study Root query, for [`Association::find`].
    #[must_use]
    pub fn propose_find(self) -> Self {
        self.propose(FIND, &Encoding::TRANSFER_SYNTAXES)
    }
}

impl Association {
    /// C-FIND. Not cancel-safe, as all requests.
    pub async fn find(&mut self, query: &FindQuery, limits: FindLimits) -> Result<FindMatches<'_>, RequestError> {
        let (context_id, encoding) = self.message_context(FIND)?;
        let identifier = query.encode(encoding).map_err(RequestError::Encode)?;
        let message_id = self.next_message_id();
        let command = Command::FindRequest { message_id, affected_sop_class_uid: FIND.to_owned() };
        let command = CommandSet { command, has_data_set: true };
        if let Err(error) = self.messages.send_message(context_id, &command, &identifier).await {
            return Err(self.write_failed("C-FIND", &error).await);
        }
        Ok(FindMatches {
            association: self,
            context_id,
            encoding,
            message_id,
            limits,
            n_matches: 0,
            n_bytes: 0,
            end: None,
        })
    }
}

impl FindMatches<'_> {
    /// The next match; `None` after the last one, or when a limit is reached.
    pub async fn next(&mut self) -> Result<Option<Identifier>, RequestError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let deadline = Instant::now() + self.association.requestor.timeouts.dimse;
        let Some(bytes) = self.next_identifier(deadline).await? else { return Ok(None) };
        self.n_matches += 1;
        self.n_bytes += bytes.len();
        if self.n_matches > self.limits.max_matches || self.n_bytes > self.limits.max_bytes {
            self.stop().await?;
            self.end = self.end.take().map(|end| FindEnd { limit_reached: true, ..end });
            return Ok(None);
        }
        match Identifier::decode(&bytes, self.encoding) {
            Ok(identifier) => Ok(Some(identifier)),
            Err(error) => Err(self.association.broken("C-FIND", &error.to_string()).await),
        }
    }

    /// How the query ended; `None` while it goes on.
    pub fn end(&self) -> Option<&FindEnd> {
        self.end.as_ref()
    }

    /// Wants no more matches: C-CANCEL, then everything up to the final response is thrown away.
    pub async fn cancel(mut self) -> Result<FindEnd, RequestError> {
        self.stop().await?;
        self.end.ok_or_else(|| RequestError::Encode("C-FIND ended without a status".to_owned()))
    }

    async fn stop(&mut self) -> Result<(), RequestError> {
        if self.end.is_some() {
            return Ok(());
        }
        let cancel = CommandSet::without_data_set(Command::CancelRequest { responds_to: self.message_id });
        if let Err(error) = self.association.messages.send_command(self.context_id, &cancel).await {
            return Err(self.association.write_failed("C-CANCEL", &error).await);
        }
        // One deadline for all: a peer that goes on for ever is aborted.
        let deadline = Instant::now() + self.association.requestor.timeouts.dimse;
        while self.next_identifier(deadline).await?.is_some() {}
        Ok(())
    }

    /// The identifier of the next pending response; `None` when the final one has come.
    async fn next_identifier(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, RequestError> {
        let association = &mut *self.association;
        let (context_id, CommandSet { command, has_data_set }) = association.next_command("C-FIND", deadline).await?;
        let response = match command {
            Command::Response(response) if response.responds_to == self.message_id && response.is_find() => response,
            _ => return Err(association.broken("C-FIND", "the peer sent a message that answers no request").await),
        };
        let ResponseCommand { status, error_comment, .. } = response;
        let is_pending = status::category(status) == status::Category::Pending;
        if is_pending && !has_data_set {
            return Err(association.broken("C-FIND", "the peer sent a pending response without an identifier").await);
        }
        let max_bytes = self.limits.max_identifier_bytes;
        let bytes =
            if has_data_set { association.data_set("C-FIND", context_id, max_bytes, deadline).await? } else { None };
        if !is_pending {
            self.end = Some(FindEnd { status, error_comment, limit_reached: false });
            return Ok(None);
        }
        if bytes.is_none() {
            let words = format!("the peer sent an identifier of more than {max_bytes} bytes");
            return Err(association.broken("C-FIND", &words).await);
        }
        Ok(bytes)
    }
}

/// Where a count of instances comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountSource {
    /// Number of Study Related Instances (0020,1208).
    Study,
    /// The sum of Number of Series Related Instances (0020,1209).
    Series,
    /// The instances themselves were listed.
    Image,
}

/// How many instances a peer has of a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StudyCount {
    /// Instances.
    pub instances: u64,
    /// How we know.
    pub source: CountSource,
}

/// Why a peer's instances could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// The peer could not be asked.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The peer refused the query.
    #[error("`{called}` answers C-FIND with {}; look into its log", status::InWords(*.status))]
    Refused {
        /// Whom we asked.
        called: crate::types::AeTitle,
        /// (0000,0900)
        status: u16,
    },
    /// The list is too long to be counted.
    #[error("`{called}` lists more than {} matches; a study of that size is not counted", .limit)]
    TooMany {
        /// Whom we asked.
        called: crate::types::AeTitle,
        /// Matches that are read at most.
        limit: usize,
    },
}

/// Counts the instances of a study at the peer that `requestor` calls (C-FIND, Study Root), on an association of its
/// own. `requestor` needs no contexts. `None` when the peer does not know the study.
///
/// Asks for Number of Study Related Instances; a peer that does not answer it is asked series by series.
pub async fn count_study_instances(
    requestor: AssociationRequestor,
    study_instance_uid: &Uid,
) -> Result<Option<StudyCount>, CountError> {
    let mut association = requestor.propose_find().establish().await?;
    let counted = count(&mut association, study_instance_uid).await;
    // The question is answered, or cannot be: how the peer says goodbye changes nothing.
    match &counted {
        Ok(_) | Err(CountError::Refused { .. } | CountError::TooMany { .. }) => drop(association.release().await),
        Err(CountError::Request(_)) => association.abort().await,
    }
    counted
}

async fn count(association: &mut Association, study_instance_uid: &Uid) -> Result<Option<StudyCount>, CountError> {
    let study = FindQuery::new(QueryLevel::Study)
        .matching(tags::STUDY_INSTANCE_UID, study_instance_uid.as_str())
        .returning(tags::NUMBER_OF_STUDY_RELATED_INSTANCES);
    let studies = all(association, &study).await?;
    // A peer that ignores the key must not make us count another study.
    let is_it = |found: &&Identifier| found.text(tags::STUDY_INSTANCE_UID) == Some(study_instance_uid.as_str());
    let Some(found) = studies.iter().find(is_it) else { return Ok(None) };
    if let Some(instances) = found.count(tags::NUMBER_OF_STUDY_RELATED_INSTANCES) {
        return Ok(Some(StudyCount { instances, source: CountSource::Study }));
    }
    let of_study = |level| FindQuery::new(level).matching(tags::STUDY_INSTANCE_UID, study_instance_uid.as_str());
    let series = of_study(QueryLevel::Series)
        .returning(tags::SERIES_INSTANCE_UID)
        .returning(tags::NUMBER_OF_SERIES_RELATED_INSTANCES);
    let series = all(association, &series).await?;
    let counts: Option<Vec<u64>> =
        series.iter().map(|series| series.count(tags::NUMBER_OF_SERIES_RELATED_INSTANCES)).collect();
    if let Some(counts) = counts {
        let instances = counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
        return Ok(Some(StudyCount { instances, source: CountSource::Series }));
    }
    let mut instances = 0;
    for series_instance_uid in series.iter().filter_map(|series| series.text(tags::SERIES_INSTANCE_UID)) {
        let images = of_study(QueryLevel::Image)
            .matching(tags::SERIES_INSTANCE_UID, series_instance_uid)
            .returning(tags::SOP_INSTANCE_UID);
        instances += all(association, &images).await?.len() as u64;
    }
    Ok(Some(StudyCount { instances, source: CountSource::Image }))
}

/// Every match of `query`.
async fn all(association: &mut Association, query: &FindQuery) -> Result<Vec<Identifier>, CountError> {
    let called = association.requestor.called.clone();
    let limits = FindLimits::default();
    let mut matches = association.find(query, limits).await?;
    let mut found = Vec::new();
    while let Some(identifier) = matches.next().await? {
        found.push(identifier);
    }
    match matches.end() {
        Some(end) if end.limit_reached => Err(CountError::TooMany { called, limit: limits.max_matches }),
        Some(end) if status::category(end.status) == status::Category::Failure => {
            Err(CountError::Refused { called, status: end.status })
        }
        _ => Ok(found),
    }
}
