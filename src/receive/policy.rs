//! What an association gets: the policies of node, local AE title and peer become one.

use crate::{
    dimse::{Admission, NegotiationPolicy, Quota, negotiation, storage_policy},
    types::{AssociationPolicy, LocalAe, Peer, Uid, UserIdentityPolicy},
};

/// Which user identity an association needs, if any: the peer's word, else that of the local AE title, else the
/// node's.
pub(super) fn required_identity<'a>(
    node: &'a AssociationPolicy,
    local_ae: &'a LocalAe,
    peer: &'a Peer,
) -> Option<&'a UserIdentityPolicy> {
    [&peer.policy, &local_ae.policy, node].into_iter().find_map(|policy| policy.user_identity.as_ref())
}

/// What the association gets. A local AE title and a peer restrict each other; the node's policy holds where neither
/// says anything.
pub(super) fn admission(node: &AssociationPolicy, local_ae: &LocalAe, peer: &Peer) -> Admission {
    let (ours, theirs) = (&local_ae.policy, &peer.policy);
    let shorter = [ours.max_pdu_length_bytes, theirs.max_pdu_length_bytes].into_iter().flatten().min();
    let sop_classes = both(ours.sop_classes.as_deref(), theirs.sop_classes.as_deref(), node.sop_classes.as_deref());
    let transfer_syntaxes =
        both(ours.transfer_syntaxes.as_deref(), theirs.transfer_syntaxes.as_deref(), node.transfer_syntaxes.as_deref());
    Admission {
        contexts: contexts(sop_classes.as_deref(), transfer_syntaxes.as_deref()),
        max_pdu_length: shorter.or(node.max_pdu_length_bytes),
        quotas: vec![
            Quota {
                subject: format!("peer `{}`", peer.name),
                max_associations: theirs.max_associations.or(node.max_associations),
                max_associations_per_minute: theirs.max_associations_per_minute.or(node.max_associations_per_minute),
                max_bytes_per_second: theirs.max_bytes_per_second.or(node.max_bytes_per_second),
            },
            Quota {
                subject: format!("local AE `{}`", local_ae.ae_title),
                max_associations: ours.max_associations,
                max_associations_per_minute: ours.max_associations_per_minute,
                max_bytes_per_second: ours.max_bytes_per_second,
            },
        ],
        identity_accepted: false,
    }
}

/// What is in both lists, in the peer's order; where one is missing, the other; where both are, the node's.
fn both(ours: Option<&[Uid]>, theirs: Option<&[Uid]>, nodes: Option<&[Uid]>) -> Option<Vec<Uid>> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => Some(theirs.iter().filter(|uid| ours.contains(uid)).cloned().collect()),
        (Some(only), None) | (None, Some(only)) => Some(only.to_vec()),
        (None, None) => nodes.map(<[Uid]>::to_vec),
    }
}

/// The presentation contexts: what the node offers anyway, with other storage SOP classes or transfer syntaxes where
/// they are given.
fn contexts(sop_classes: Option<&[Uid]>, transfer_syntaxes: Option<&[Uid]>) -> NegotiationPolicy {
    let offered = storage_policy();
    if sop_classes.is_none() && transfer_syntaxes.is_none() {
        return offered;
    }
    let services = offered.retain(|sop_class| !negotiation::STORAGE_SOP_CLASSES.contains(&sop_class));
    let transfer_syntaxes: Vec<&str> = match transfer_syntaxes {
        Some(given) => given.iter().map(Uid::as_str).collect(),
        None => negotiation::DECODABLE_TRANSFER_SYNTAXES.to_vec(),
    };
    let sop_classes: Vec<&str> = match sop_classes {
        Some(given) => given.iter().map(Uid::as_str).collect(),
        None => negotiation::STORAGE_SOP_CLASSES.to_vec(),
    };
    // Verification and the like stay what they are, whatever a policy lists.
    let storage = sop_classes.into_iter().filter(|sop_class| !services.offers(sop_class)).collect::<Vec<_>>();
    storage.into_iter().fold(services, |policy, sop_class| policy.with(sop_class, &transfer_syntaxes))
}

#[cfg(test)]
mod tests {
    use dicom_dictionary_std::uids;

    use super::*;
    use crate::{
        dimse::negotiation::{ProposedContext, negotiate},
        types::{AeTitle, RequiredIdentity},
    };

    fn policy(text: &str) -> AssociationPolicy {
        toml::from_str(text).unwrap()
    }

    fn local_ae(text: &str) -> LocalAe {
        LocalAe {
            ae_title: AeTitle::new("HILUM").unwrap(),
            enabled: true,
            description: String::new(),
            policy: policy(text),
        }
    }

    fn peer(text: &str) -> Peer {
        let mut peer: Peer = toml::from_str("name = \"ct\"\nae_title = \"CT01\"\nhost = \"*\"").unwrap();
        peer.policy = policy(text);
        peer
    }

    /// The transfer syntax in which `sop_class` is accepted of all that are proposed.
    fn accepted(admission: &Admission, sop_class: &str) -> Option<String> {
        let syntaxes = [uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::JPEG2000_LOSSLESS];
        let proposed = ProposedContext {
            id: 1,
            abstract_syntax: sop_class.to_owned(),
            transfer_syntaxes: syntaxes.map(str::to_owned).to_vec(),
        };
        let negotiated = negotiate(&admission.contexts, &[proposed]).unwrap();
        negotiated[0].transfer_syntax_uid().map(ToString::to_string)
    }

    const CT: &str = uids::CT_IMAGE_STORAGE;
    const CR: &str = uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE;
    const MR: &str = uids::MR_IMAGE_STORAGE;

    #[test]
    fn without_policies_the_node_offers_what_it_stores() {
        let admission = admission(&policy(""), &local_ae(""), &peer(""));
        assert_eq!(accepted(&admission, CT).as_deref(), Some(uids::EXPLICIT_VR_LITTLE_ENDIAN));
        assert_eq!(accepted(&admission, MR), None);
        assert_eq!(admission.max_pdu_length, None);
        assert!(admission.quotas.iter().all(|quota| quota.max_associations.is_none()));
    }

    #[test]
    fn the_order_of_the_nearest_policy_decides_and_both_must_allow() {
        let node = policy("transfer_syntaxes = [\"1.2.840.10008.1.2.1\"]");
        let ours =
            format!("transfer_syntaxes = [\"{}\", \"{}\"]", uids::IMPLICIT_VR_LITTLE_ENDIAN, uids::JPEG2000_LOSSLESS);
        let theirs =
            format!("transfer_syntaxes = [\"{}\", \"{}\"]", uids::JPEG2000_LOSSLESS, uids::IMPLICIT_VR_LITTLE_ENDIAN);
        let of = |ours: &str, theirs: &str| accepted(&admission(&node, &local_ae(ours), &peer(theirs)), CT);
        assert_eq!(of("", "").as_deref(), Some(uids::EXPLICIT_VR_LITTLE_ENDIAN));
        assert_eq!(of(&ours, "").as_deref(), Some(uids::IMPLICIT_VR_LITTLE_ENDIAN));
        assert_eq!(of(&ours, &theirs).as_deref(), Some(uids::JPEG2000_LOSSLESS));
        assert_eq!(of(&ours, "transfer_syntaxes = [\"1.2.840.10008.1.2.1\"]"), None);
    }

    #[test]
    fn sop_classes_can_be_taken_away_and_added_and_verification_stays() {
        let of = |ours: &str, theirs: &str| admission(&policy(""), &local_ae(ours), &peer(theirs));
        let only_ct = format!("sop_classes = [\"{CT}\"]");
        let with_mr = format!("sop_classes = [\"{CT}\", \"{MR}\", \"{}\"]", uids::VERIFICATION);
        let restricted = of(&only_ct, &with_mr);
        assert!(accepted(&restricted, CT).is_some());
        assert!(accepted(&restricted, MR).is_none() && accepted(&restricted, CR).is_none());
        let wider = of("", &with_mr);
        assert!(accepted(&wider, MR).is_some() && accepted(&wider, CR).is_none());
        assert!(accepted(&wider, uids::VERIFICATION).is_some());
    }

    #[test]
    fn the_shorter_pdu_and_the_quotas_of_both_hold() {
        let node = policy("max_associations = 32\nmax_pdu_length_bytes = 65536\nmax_bytes_per_second = 5000");
        let admission_of = |ours: &str, theirs: &str| admission(&node, &local_ae(ours), &peer(theirs));
        assert_eq!(admission_of("", "").max_pdu_length, Some(65536));
        assert_eq!(
            admission_of("max_pdu_length_bytes = 16384", "max_pdu_length_bytes = 131072").max_pdu_length,
            Some(16384)
        );
        let [of_peer, of_ae] = <[Quota; 2]>::try_from(admission_of("max_associations = 4", "").quotas).unwrap();
        assert_eq!((of_peer.subject.as_str(), of_peer.max_associations), ("peer `ct`", Some(32)));
        assert_eq!((of_ae.subject.as_str(), of_ae.max_associations), ("local AE `HILUM`", Some(4)));
        assert_eq!(of_peer.max_bytes_per_second, Some(5000));
        // A peer may have more than the node's default.
        assert_eq!(admission_of("", "max_associations = 60").quotas[0].max_associations, Some(60));
    }

    #[test]
    fn the_nearest_identity_holds() {
        let wants =
            |name: &str| format!("user_identity = {{ required = \"username\", users = [{{ name = \"{name}\" }}] }}");
        let (node, ours) = (policy(&wants("node")), local_ae(&wants("ours")));
        let name = |peer: &Peer| required_identity(&node, &ours, peer).unwrap().users[0].name.clone();
        assert_eq!(name(&peer(&wants("theirs"))), "theirs");
        assert_eq!(name(&peer("")), "ours");
        let let_off = peer("user_identity = { required = \"none\" }");
        assert_eq!(required_identity(&node, &ours, &let_off).unwrap().required, RequiredIdentity::None);
    }
}
