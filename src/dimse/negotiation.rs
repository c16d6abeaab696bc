//! Which presentation contexts are accepted, in which transfer syntax (PS3.8 section 7.1.1.13, PS3.7 annex D.3).
//! Pure: no sockets.

use std::{collections::BTreeSet, fmt};

use dicom_dictionary_std::uids;
use dicom_ul::pdu::{
    PresentationContextProposed, PresentationContextResult, PresentationContextResultReason, RequestorRoles,
    UserIdentityType, UserVariableItem,
};

use super::quota::Quota;
use crate::types::Uid;

/// Storage SOP classes that Hilum receives.
pub const STORAGE_SOP_CLASSES: &[&str] = &[
    uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE,
    uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION,
    uids::CT_IMAGE_STORAGE,
];

/// Transfer syntaxes that Hilum can decode, the preferred one first.
///
/// The order matters only for a sender that offers several in one context. It then converts the object to what we
/// choose, so:
///
/// * Lossless before lossy: a choice of ours must never cost diagnostic information.
/// * Uncompressed before compressed. We have to decode each object once anyway. If the sender holds it compressed,
///   the choice moves that decoding to the sender at no extra cost; if it holds it uncompressed, any other choice
///   would add an encoding at the sender *and* a decoding here. It is also what every sender can produce.
/// * Among lossless codecs, the cheapest to decode first (2500×2000×16 bit: RLE 0.03 s, JPEG-LS 0.13 s, JPEG
///   lossless 0.15 s, JPEG 2000 0.9 s).
///
/// A sender that wants an object to arrive as it is proposes its syntax in a context of its own, as PACS and
/// dcmtk do; each is then accepted.
///
/// Not here: video, JPEG XL and HTJ2K.
pub const DECODABLE_TRANSFER_SYNTAXES: &[&str] = &[
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    uids::RLE_LOSSLESS,
    uids::JPEGLS_LOSSLESS,
    uids::JPEG_LOSSLESS_SV1,
    uids::JPEG_LOSSLESS,
    uids::JPEG2000_LOSSLESS,
    uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    uids::JPEGLS_NEAR_LOSSLESS,
    uids::JPEG2000,
    uids::JPEG_BASELINE8_BIT,
    uids::JPEG_EXTENDED12_BIT,
];

/// Retired from the standard in 2006, still proposed by every dcmtk tool.
const EXPLICIT_VR_BIG_ENDIAN: &str = "1.2.840.10008.1.2.2";

/// What an acceptor accepts: abstract syntaxes, and for each the transfer syntaxes in order of preference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NegotiationPolicy {
    abstract_syntaxes: Vec<(String, Vec<String>)>,
}

impl NegotiationPolicy {
    /// Accepts nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts `abstract_syntax` in `transfer_syntaxes`, the preferred one first; replaces an earlier entry.
    #[must_use]
    pub fn with(mut self, abstract_syntax: &str, transfer_syntaxes: &[&str]) -> Self {
        self.abstract_syntaxes.retain(|(known, _)| known != abstract_syntax);
        let transfer_syntaxes = transfer_syntaxes.iter().map(|&uid| uid.to_owned()).collect();
        self.abstract_syntaxes.push((abstract_syntax.to_owned(), transfer_syntaxes));
        self
    }

    /// Without the abstract syntaxes that `keep` refuses.
    #[must_use]
    pub fn retain(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.abstract_syntaxes.retain(|(known, _)| keep(known));
        self
    }

    /// Whether `abstract_syntax` is accepted in any transfer syntax.
    #[must_use]
    pub fn offers(&self, abstract_syntax: &str) -> bool {
        self.transfer_syntaxes(abstract_syntax).is_some()
    }

    /// The transfer syntaxes that `abstract_syntax` is accepted in, the preferred one first; `None` where it is not.
    pub fn transfer_syntaxes(&self, abstract_syntax: &str) -> Option<&[String]> {
        self.abstract_syntaxes
            .iter()
            .find(|(known, _)| known == abstract_syntax)
            .map(|(_, transfer_syntaxes)| transfer_syntaxes.as_slice())
    }

    /// The abstract syntaxes that are accepted.
    pub fn abstract_syntaxes(&self) -> impl Iterator<Item = &str> {
        self.abstract_syntaxes.iter().map(|(abstract_syntax, _)| abstract_syntax.as_str())
    }
}

/// What Hilum receives: Verification, Storage Commitment, and [`STORAGE_SOP_CLASSES`] in
/// [`DECODABLE_TRANSFER_SYNTAXES`].
pub fn storage_policy() -> NegotiationPolicy {
    let verification = NegotiationPolicy::new().with(
        uids::VERIFICATION,
        &[uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN],
    );
    let messages =
        verification.with(uids::STORAGE_COMMITMENT_PUSH_MODEL, &super::data_set::Encoding::TRANSFER_SYNTAXES);
    STORAGE_SOP_CLASSES.iter().fold(messages, |policy, sop_class| policy.with(sop_class, DECODABLE_TRANSFER_SYNTAXES))
}

/// What an acceptor grants to an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The presentation contexts.
    pub contexts: NegotiationPolicy,
    /// Longest P-DATA-TF that we accept and announce, in bytes; the acceptor's own limit holds as well.
    pub max_pdu_length: Option<u32>,
    /// Limits that it shares with other associations.
    pub quotas: Vec<Quota>,
    /// Whether the peer's user identity was looked at and is good: it is told so if it asked.
    pub identity_accepted: bool,
}

impl From<NegotiationPolicy> for Admission {
    fn from(contexts: NegotiationPolicy) -> Self {
        Self { contexts, max_pdu_length: None, quotas: Vec::new(), identity_accepted: false }
    }
}

/// Who a peer says its user is (PS3.7 section D.3.3.7). `Debug` shows neither name nor secret.
#[derive(Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// What kind of identity it is.
    pub kind: UserIdentityKind,
    /// Whether the peer waits for our word that it was accepted.
    pub positive_response_requested: bool,
    /// The name, ticket, assertion or token.
    pub primary_field: Vec<u8>,
    /// The passcode; empty for the other kinds.
    pub secondary_field: Vec<u8>,
}

/// The kinds of user identity (PS3.7 table D.3-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserIdentityKind {
    /// Type 1.
    Username,
    /// Type 2.
    UsernameAndPasscode,
    /// Types 3, 4 and 5, and whatever comes later: Kerberos, SAML, JSON Web Token.
    Other,
}

impl fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserIdentity").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl UserIdentity {
    pub(crate) fn from_user_variables(items: &[UserVariableItem]) -> Option<Self> {
        items.iter().find_map(|item| match item {
            UserVariableItem::UserIdentityItem(identity) => Some(Self {
                kind: match identity.identity_type() {
                    UserIdentityType::Username => UserIdentityKind::Username,
                    UserIdentityType::UsernamePassword => UserIdentityKind::UsernameAndPasscode,
                    _ => UserIdentityKind::Other,
                },
                positive_response_requested: identity.positive_response_requested(),
                primary_field: identity.primary_field(),
                secondary_field: identity.secondary_field(),
            }),
            _ => None,
        })
    }

    /// The item of an A-ASSOCIATE-AC that says it was accepted (PS3.7 section D.3.3.7.2); there is nothing to add for
    /// names and passcodes.
    pub(crate) fn positive_response() -> UserVariableItem {
        UserVariableItem::Unknown(0x59, vec![0, 0])
    }
}

/// A presentation context that a requestor proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedContext {
    /// Odd, 1 to 255.
    pub id: u8,
    /// As sent, without padding: not necessarily a valid UID.
    pub abstract_syntax: String,
    /// As sent, without padding, in the requestor's order.
    pub transfer_syntaxes: Vec<String>,
}

impl From<PresentationContextProposed> for ProposedContext {
    fn from(context: PresentationContextProposed) -> Self {
        Self { id: context.id, abstract_syntax: context.abstract_syntax, transfer_syntaxes: context.transfer_syntaxes }
    }
}

/// The answer to one proposed presentation context (PS3.8 table 9-18).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextOutcome {
    /// Accepted in this transfer syntax.
    Accepted {
        /// Chosen by the acceptor.
        transfer_syntax_uid: Uid,
    },
    /// Rejected by the user.
    UserRejection,
    /// Rejected by the provider without a reason.
    NoReason,
    /// The abstract syntax is not supported.
    AbstractSyntaxNotSupported,
    /// None of the proposed transfer syntaxes is supported.
    TransferSyntaxesNotSupported,
}

impl fmt::Display for ContextOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { transfer_syntax_uid } => write!(f, "accepted in {transfer_syntax_uid}"),
            Self::UserRejection => f.write_str("rejected by the user"),
            Self::NoReason => f.write_str("rejected without a reason"),
            Self::AbstractSyntaxNotSupported => f.write_str("abstract syntax not supported"),
            Self::TransferSyntaxesNotSupported => f.write_str("transfer syntaxes not supported"),
        }
    }
}

/// A proposed presentation context with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegotiatedContext {
    /// Odd, 1 to 255.
    pub id: u8,
    /// As proposed.
    pub abstract_syntax: String,
    /// The acceptor's answer.
    pub outcome: ContextOutcome,
}

impl NegotiatedContext {
    /// The transfer syntax, if the context was accepted.
    pub fn transfer_syntax_uid(&self) -> Option<&Uid> {
        match &self.outcome {
            ContextOutcome::Accepted { transfer_syntax_uid } => Some(transfer_syntax_uid),
            _ => None,
        }
    }

    pub(crate) fn to_result(&self) -> PresentationContextResult {
        let reason = match &self.outcome {
            ContextOutcome::Accepted { .. } => PresentationContextResultReason::Acceptance,
            ContextOutcome::UserRejection => PresentationContextResultReason::UserRejection,
            ContextOutcome::NoReason => PresentationContextResultReason::NoReason,
            ContextOutcome::AbstractSyntaxNotSupported => PresentationContextResultReason::AbstractSyntaxNotSupported,
            ContextOutcome::TransferSyntaxesNotSupported => {
                PresentationContextResultReason::TransferSyntaxesNotSupported
            }
        };
        // The item must be there for a refused context too, where its value means nothing (PS3.8 section 9.3.3.2).
        let transfer_syntax = self.transfer_syntax_uid().map_or(uids::IMPLICIT_VR_LITTLE_ENDIAN, Uid::as_str);
        PresentationContextResult { id: self.id, reason, transfer_syntax: transfer_syntax.to_owned() }
    }
}

/// A proposal that cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// PS3.8 section 9.3.2.2: ids are odd.
    #[error("presentation context id {0} is even: ids are odd numbers from 1 to 255")]
    EvenId(u8),
    /// An id names one context only.
    #[error("presentation context id {0} is proposed twice")]
    DuplicateId(u8),
    /// PS3.8 section 9.3.2: one or more contexts.
    #[error("no presentation context is proposed")]
    NoContext,
}

/// Answers every proposed context by `policy`: *our* first transfer syntax among the proposed ones.
pub fn negotiate(
    policy: &NegotiationPolicy,
    proposed: &[ProposedContext],
) -> Result<Vec<NegotiatedContext>, ProposalError> {
    check_ids(proposed)?;
    Ok(proposed
        .iter()
        .map(|context| NegotiatedContext {
            id: context.id,
            abstract_syntax: context.abstract_syntax.clone(),
            outcome: answer(policy, context),
        })
        .collect())
}

fn check_ids(proposed: &[ProposedContext]) -> Result<(), ProposalError> {
    if proposed.is_empty() {
        return Err(ProposalError::NoContext);
    }
    let mut seen = BTreeSet::new();
    for context in proposed {
        if context.id % 2 == 0 {
            return Err(ProposalError::EvenId(context.id));
        }
        if !seen.insert(context.id) {
            return Err(ProposalError::DuplicateId(context.id));
        }
    }
    Ok(())
}

fn answer(policy: &NegotiationPolicy, context: &ProposedContext) -> ContextOutcome {
    let Some(preferred) = policy.transfer_syntaxes(&context.abstract_syntax) else {
        return ContextOutcome::AbstractSyntaxNotSupported;
    };
    preferred
        .iter()
        .filter(|uid| context.transfer_syntaxes.contains(uid))
        .find_map(|uid| Uid::new(uid).ok())
        .map_or(ContextOutcome::TransferSyntaxesNotSupported, |transfer_syntax_uid| ContextOutcome::Accepted {
            transfer_syntax_uid,
        })
}

/// The requestor's view: its proposals with the results of an A-ASSOCIATE-AC. A context that the peer does not
/// answer, or accepts in a transfer syntax that was not proposed, counts as rejected without a reason.
pub(crate) fn match_results(
    proposed: &[ProposedContext],
    results: &[PresentationContextResult],
) -> Vec<NegotiatedContext> {
    proposed
        .iter()
        .map(|context| {
            let result = results.iter().find(|result| result.id == context.id);
            let outcome = match result.map(|result| (&result.reason, result.transfer_syntax.as_str())) {
                Some((PresentationContextResultReason::Acceptance, transfer_syntax)) => Uid::new(transfer_syntax)
                    .ok()
                    .filter(|uid| context.transfer_syntaxes.iter().any(|proposed| proposed == uid.as_str()))
                    .map_or(ContextOutcome::NoReason, |transfer_syntax_uid| ContextOutcome::Accepted {
                        transfer_syntax_uid,
                    }),
                Some((PresentationContextResultReason::UserRejection, _)) => ContextOutcome::UserRejection,
                Some((PresentationContextResultReason::AbstractSyntaxNotSupported, _)) => {
                    ContextOutcome::AbstractSyntaxNotSupported
                }
                Some((PresentationContextResultReason::TransferSyntaxesNotSupported, _)) => {
                    ContextOutcome::TransferSyntaxesNotSupported
                }
                Some((PresentationContextResultReason::NoReason, _)) | None => ContextOutcome::NoReason,
            };
            NegotiatedContext { id: context.id, abstract_syntax: context.abstract_syntax.clone(), outcome }
        })
        .collect()
}

/// What a peer says of itself in its user information (PS3.7 annex D.3.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerImplementation {
    /// Implementation Class UID as sent; mandatory in the standard, missing in the field.
    pub class_uid: Option<String>,
    /// Implementation Version Name as sent.
    pub version_name: Option<String>,
    /// Longest P-DATA-TF that it accepts, in bytes; 0 means unlimited.
    pub max_pdu_length: u32,
}

impl PeerImplementation {
    pub(crate) fn from_user_variables(items: &[UserVariableItem]) -> Self {
        let mut peer = Self::default();
        for item in items {
            match item {
                UserVariableItem::MaxLength(length) => peer.max_pdu_length = *length,
                UserVariableItem::ImplementationClassUID(uid) => peer.class_uid = Some(uid.clone()),
                UserVariableItem::ImplementationVersionName(name) => peer.version_name = Some(name.clone()),
                _ => {}
            }
        }
        peer
    }
}

impl fmt::Display for PeerImplementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version_name = self.version_name.as_deref().unwrap_or("no version name").escape_debug();
        let class_uid = self.class_uid.as_deref().unwrap_or("no class UID").escape_debug();
        write!(f, "{version_name} ({class_uid})")
    }
}

/// Our user information: maximum length and implementation, and for each role selection that names an accepted
/// SOP class, the roles granted (PS3.7 annex D.3.3.4): the requestor is SCU; it may be SCP of Storage Commitment, where
/// it reports what we have asked of it, and of nothing else.
pub(crate) fn user_variables(
    max_pdu_length: u32,
    peer_items: &[UserVariableItem],
    negotiated: &[NegotiatedContext],
) -> Vec<UserVariableItem> {
    let mut items = vec![
        UserVariableItem::MaxLength(max_pdu_length),
        UserVariableItem::ImplementationClassUID(super::IMPLEMENTATION_CLASS_UID.to_owned()),
        UserVariableItem::ImplementationVersionName(super::IMPLEMENTATION_VERSION_NAME.to_owned()),
    ];
    for item in peer_items {
        if let UserVariableItem::ScuScpRoleSelectionSubItem(sop_class_uid, roles) = item
            && negotiated
                .iter()
                .any(|context| context.abstract_syntax == *sop_class_uid && context.transfer_syntax_uid().is_some())
        {
            let may_be_scp = sop_class_uid == uids::STORAGE_COMMITMENT_PUSH_MODEL;
            let roles = RequestorRoles { scu: roles.scu, scp: roles.scp && may_be_scp };
            items.push(UserVariableItem::ScuScpRoleSelectionSubItem(sop_class_uid.clone(), roles));
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use dicom_encoding::TransferSyntaxIndex;
    use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

    use super::*;

    const J2K: &str = uids::JPEG2000_LOSSLESS;
    const EXPLICIT: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;
    const IMPLICIT: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;
    const CT: &str = uids::CT_IMAGE_STORAGE;

    fn proposed(id: u8, abstract_syntax: &str, transfer_syntaxes: &[&str]) -> ProposedContext {
        ProposedContext {
            id,
            abstract_syntax: abstract_syntax.to_owned(),
            transfer_syntaxes: transfer_syntaxes.iter().map(|&uid| uid.to_owned()).collect(),
        }
    }

    fn accepted(uid: &str) -> ContextOutcome {
        ContextOutcome::Accepted { transfer_syntax_uid: Uid::new(uid).unwrap() }
    }

    #[test]
    fn each_context_gets_our_preference_among_the_proposed_or_the_right_reason() {
        for (abstract_syntax, transfer_syntaxes, expected) in [
            (CT, &[IMPLICIT, EXPLICIT][..], accepted(EXPLICIT)),
            (CT, &[J2K], accepted(J2K)),
            (CT, &[J2K, IMPLICIT], accepted(IMPLICIT)),
            (CT, &[uids::JPEG_BASELINE8_BIT, J2K], accepted(J2K)),
            (CT, &[uids::JPEG_EXTENDED12_BIT], accepted(uids::JPEG_EXTENDED12_BIT)),
            (CT, &[], ContextOutcome::TransferSyntaxesNotSupported),
            (uids::VERIFICATION, &[IMPLICIT], accepted(IMPLICIT)),
            (uids::VERIFICATION, &[J2K], ContextOutcome::TransferSyntaxesNotSupported),
            (uids::MR_IMAGE_STORAGE, &[EXPLICIT], ContextOutcome::AbstractSyntaxNotSupported),
            (uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PROCESSING, &[EXPLICIT], ContextOutcome::AbstractSyntaxNotSupported),
        ] {
            let contexts = negotiate(&storage_policy(), &[proposed(7, abstract_syntax, transfer_syntaxes)]).unwrap();
            assert_eq!(contexts.len(), 1);
            assert_eq!(contexts[0].id, 7);
            assert_eq!(contexts[0].outcome, expected, "{abstract_syntax} {transfer_syntaxes:?}");
        }
    }

    #[test]
    fn ids_must_be_odd_and_unique() {
        let even = [proposed(2, CT, &[EXPLICIT])];
        assert_eq!(negotiate(&storage_policy(), &even), Err(ProposalError::EvenId(2)));
        let twice = [proposed(3, CT, &[EXPLICIT]), proposed(3, CT, &[IMPLICIT])];
        assert_eq!(negotiate(&storage_policy(), &twice), Err(ProposalError::DuplicateId(3)));
        assert_eq!(negotiate(&storage_policy(), &[]), Err(ProposalError::NoContext));
    }

    #[test]
    fn everything_we_accept_can_be_decoded() {
        for uid in DECODABLE_TRANSFER_SYNTAXES {
            let syntax = TransferSyntaxRegistry.get(uid).unwrap_or_else(|| panic!("{uid} is not registered"));
            assert!(syntax.can_decode_all(), "{} cannot be decoded with the enabled features", syntax.name());
        }
        let distinct: BTreeSet<_> = DECODABLE_TRANSFER_SYNTAXES.iter().collect();
        assert_eq!(distinct.len(), DECODABLE_TRANSFER_SYNTAXES.len());
        assert_eq!(EXPLICIT_VR_BIG_ENDIAN, TransferSyntaxRegistry.get("1.2.840.10008.1.2.2").unwrap().uid());
    }

    #[test]
    fn results_are_matched_by_id_and_checked_against_the_proposal() {
        let proposals = [
            proposed(1, CT, &[EXPLICIT]),
            proposed(3, CT, &[J2K]),
            proposed(5, CT, &[EXPLICIT]),
            proposed(7, CT, &[EXPLICIT]),
        ];
        let result = |id, reason, transfer_syntax: &str| PresentationContextResult {
            id,
            reason,
            transfer_syntax: transfer_syntax.to_owned(),
        };
        let results = [
            result(5, PresentationContextResultReason::TransferSyntaxesNotSupported, IMPLICIT),
            result(3, PresentationContextResultReason::Acceptance, EXPLICIT),
            result(1, PresentationContextResultReason::Acceptance, EXPLICIT),
        ];
        let outcomes: Vec<_> =
            match_results(&proposals, &results).into_iter().map(|context| (context.id, context.outcome)).collect();
        assert_eq!(
            outcomes,
            [
                (1, accepted(EXPLICIT)),
                (3, ContextOutcome::NoReason),
                (5, ContextOutcome::TransferSyntaxesNotSupported),
                (7, ContextOutcome::NoReason),
            ]
        );
    }

    #[test]
    fn peers_are_scp_of_storage_commitment_reports_and_of_nothing_else() {
        const COMMITMENT: &str = uids::STORAGE_COMMITMENT_PUSH_MODEL;
        let proposals = [proposed(1, CT, &[EXPLICIT]), proposed(3, COMMITMENT, &[IMPLICIT])];
        let contexts = negotiate(&storage_policy(), &proposals).unwrap();
        let role = |uid: &str, scu, scp| {
            UserVariableItem::ScuScpRoleSelectionSubItem(uid.to_owned(), RequestorRoles { scu, scp })
        };
        let peer = [role(CT, true, true), role(uids::MR_IMAGE_STORAGE, true, false), role(COMMITMENT, false, true)];
        let ours = user_variables(16384, &peer, &contexts);
        assert_eq!(ours.len(), 5);
        assert_eq!(ours[0], UserVariableItem::MaxLength(16384));
        assert_eq!(ours[3], role(CT, true, false));
        assert_eq!(ours[4], role(COMMITMENT, false, true));
    }
}
