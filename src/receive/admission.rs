//! Who may associate with us: a pure decision on the snapshot of the site configuration.

use std::net::IpAddr;

use super::{
    hints::{self, shell_word},
    policy,
};
use crate::{
    dimse::{Admission, AssociationRequest, Rejection, Security},
    tls::Certificate,
    types::{AssociationPolicy, Peer, SiteConfig, UserIdentityPolicy},
};

/// Who was let in, as whom, and what is still to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Who it is, in words for a refusal: ``peer `ct-1` ``.
    pub subject: String,
    /// What the association gets.
    pub admission: Admission,
    /// The user identity that it needs.
    pub required_identity: Option<UserIdentityPolicy>,
}

/// Decides on a request. `peer_addresses` gives the addresses that a peer's host stands for; without a `site`
/// (nothing was ever read) nobody can be told from anybody, so the peer is asked to come back later. `node` is what
/// holds where neither the local AE title nor the peer says otherwise.
pub fn admit(
    site: Option<&SiteConfig>,
    node: &AssociationPolicy,
    request: &AssociationRequest,
    peer_addresses: impl Fn(&Peer) -> Vec<IpAddr>,
) -> Result<Admitted, Rejection> {
    if request.security == Security::PlainOnTlsPort {
        return Err(Rejection::not_authorized(
            "an association over TLS on this port",
            "an association request without TLS",
            "turn TLS on at the sender, or let it call the port without TLS (`listen` in section [dicom])",
        ));
    }
    let Some(site) = site else {
        return Err(Rejection::temporary_congestion(
            "a site configuration in Postgres or in the node's snapshot",
            "an association while there is none yet",
            "wait until Postgres can be reached, then run `hilum apply config/site.toml`",
        ));
    };
    let called = &request.called_ae_title;
    let local_ae = site.local_aes.iter().find(|ae| Some(&ae.ae_title) == called.title.as_ref());
    let local_ae = match local_ae {
        None => {
            let known = site.local_aes.iter().map(|ae| ae.ae_title.as_str());
            let hints = hints::on_called(site, &called.text, &request.calling_ae_title.text);
            return Err(Rejection::called_ae_title_not_recognized(
                format!("a call to {}", list(known)),
                format!("a call to `{called}`"),
                hints::remedy(&hints, &format!("run `hilum local-ae add {}`", shell_word(&called.text))),
            ));
        }
        Some(local_ae) if !local_ae.enabled => {
            return Err(Rejection::called_ae_title_not_recognized(
                "a call to an enabled local AE",
                format!("a call to `{called}`, which is disabled"),
                format!("run `hilum local-ae add {}` to enable it again", shell_word(&called.text)),
            ));
        }
        Some(local_ae) => local_ae,
    };
    let calling = &request.calling_ae_title;
    let address = request.peer_address.ip().to_canonical();
    let namesakes: Vec<&Peer> =
        site.peers.iter().filter(|peer| Some(&peer.ae_title) == calling.title.as_ref()).collect();
    let add = format!("hilum peer add NAME --ae-title {} --host {address} --may-store", shell_word(&calling.text));
    let hints = || hints::on_calling(site, &calling.text, &called.text, address, &peer_addresses);
    if namesakes.is_empty() {
        let known = site.peers.iter().filter(|peer| peer.may_store).map(|peer| peer.ae_title.as_str());
        return Err(Rejection::calling_ae_title_not_recognized(
            format!("a call from {}", list(known)),
            format!("a call from `{calling}` at {address}"),
            hints::remedy(&hints(), &format!("run `{add}`")),
        ));
    }
    let Some(peer) = calling_peer(site, request, &peer_addresses) else {
        let allowed_elsewhere = namesakes.iter().any(|peer| peer.may_store);
        let hosts = list(namesakes.iter().map(|peer| peer.host.as_str()));
        if let Some(unresolved) = namesakes.iter().find(|peer| peer.may_store && peer_addresses(peer).is_empty()) {
            return Err(Rejection::temporary_congestion(
                format!("`{calling}` to call from {hosts}"),
                format!("a call from {address} while the name `{}` cannot be resolved", unresolved.host),
                "mend the name service, or give that peer's host as an address",
            ));
        }
        return Err(if allowed_elsewhere {
            Rejection::calling_ae_title_not_recognized(
                format!("`{calling}` to call from {hosts}"),
                format!("a call from {address}"),
                hints::remedy(&hints(), &format!("correct the host of that peer, or run `{add}`")),
            )
        } else {
            Rejection::calling_ae_title_not_recognized(
                "a peer that may store".to_owned(),
                format!("a call from `{calling}` at {address}, which may not"),
                format!("run `{add}` with that peer's name"),
            )
        });
    };
    check_security(peer, &request.security)?;
    Ok(Admitted {
        subject: format!("peer `{}`", peer.name),
        admission: policy::admission(node, local_ae, peer),
        required_identity: policy::required_identity(node, local_ae, peer).cloned(),
    })
}

/// The peer that calls: of several that may store with this title from this address the one whose certificate fits.
pub(super) fn calling_peer<'a>(
    site: &'a SiteConfig,
    request: &AssociationRequest,
    peer_addresses: impl Fn(&Peer) -> Vec<IpAddr>,
) -> Option<&'a Peer> {
    let (title, address) = (request.calling_ae_title.title.as_ref(), request.peer_address.ip().to_canonical());
    let calls = |peer: &&Peer| {
        peer.may_store && Some(&peer.ae_title) == title && (peer.host == "*" || peer_addresses(peer).contains(&address))
    };
    let candidates: Vec<&Peer> = site.peers.iter().filter(calls).collect();
    let fitting = candidates.iter().find(|peer| check_security(peer, &request.security).is_ok());
    fitting.or(candidates.first()).copied()
}

/// Whether the association came as this peer's must: over TLS, and with its certificate.
fn check_security(peer: &Peer, security: &Security) -> Result<(), Rejection> {
    let (ae_title, name) = (&peer.ae_title, &peer.name);
    let peer_certificate = match security {
        Security::Tls { peer_certificate } => peer_certificate,
        Security::Plain | Security::PlainOnTlsPort if peer.require_tls => {
            return Err(Rejection::not_authorized(
                format!("an association over TLS from `{ae_title}`"),
                "one without TLS",
                format!(
                    "turn TLS on at the sender and let it call the port for TLS (`listen` in section [tls]), or set \
                     require_tls of peer `{name}` to false"
                ),
            ));
        }
        Security::Plain | Security::PlainOnTlsPort => return Ok(()),
    };
    let mut wanted = Vec::new();
    if !peer.tls_certificate_sha256.is_empty() {
        let fingerprints: Vec<String> = peer.tls_certificate_sha256.iter().map(ToString::to_string).collect();
        wanted.push(format!("fingerprint {}", fingerprints.join(" or ")));
    }
    if let Some(subject_name) = &peer.tls_subject_name {
        wanted.push(format!("name `{subject_name}`"));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let expected = format!("`{ae_title}` to show a certificate with {}", wanted.join(" and "));
    let remedy = format!(
        "give the sender its own certificate, or, if the one received is its new one, correct tls_certificate_sha256 \
         and tls_subject_name of peer `{name}`"
    );
    let Some(der) = peer_certificate else {
        return Err(Rejection::not_authorized(expected, "no certificate", remedy));
    };
    let certificate = Certificate::read(der)
        .map_err(|error| Rejection::not_authorized(expected.clone(), error.to_string(), remedy.clone()))?;
    let right_fingerprint =
        peer.tls_certificate_sha256.is_empty() || peer.tls_certificate_sha256.contains(&certificate.sha256);
    let right_name = peer.tls_subject_name.as_ref().is_none_or(|wanted| certificate.has_name(wanted));
    if right_fingerprint && right_name {
        return Ok(());
    }
    Err(Rejection::not_authorized(expected, certificate.to_string(), remedy))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.take(8).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "nobody: none is configured".to_owned() } else { names.join(" or ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dimse::{PeerImplementation, RejectReason, RejectResult, RequestedTitle},
        tls::testing::Ca,
        types::{AeTitle, LocalAe, Sha256Digest},
    };

    fn peer(name: &str, ae_title: &str, host: &str, may_store: bool) -> Peer {
        Peer { may_store, ..Peer::new(name, AeTitle::new(ae_title).unwrap(), host) }
    }

    fn site() -> SiteConfig {
        let local_ae = |title: &str, enabled| LocalAe {
            ae_title: AeTitle::new(title).unwrap(),
            enabled,
            description: String::new(),
            policy: AssociationPolicy::default(),
        };
        SiteConfig {
            local_aes: vec![local_ae("HILUM", true), local_ae("OLD", false)],
            peers: vec![
                peer("ct", "CT01", "10.1.2.3", true),
                peer("any", "ANYWHERE", "*", true),
                peer("pacs", "PACS", "10.9.9.9", false),
            ],
            ..SiteConfig::default()
        }
    }

    fn request(calling: &str, called: &str, address: &str) -> AssociationRequest {
        let title = |text: &str| RequestedTitle { text: text.into(), title: AeTitle::new(text).ok() };
        AssociationRequest {
            association_id: uuid::Uuid::from_u128(1),
            peer_address: format!("{address}:40000").parse().unwrap(),
            calling_ae_title: title(calling),
            called_ae_title: title(called),
            application_context_name: "1.2.840.10008.3.1.1.1".into(),
            implementation: PeerImplementation::default(),
            proposed_contexts: Vec::new(),
            user_identity: None,
            security: Security::Plain,
        }
    }

    fn decide(site: Option<&SiteConfig>, request: &AssociationRequest) -> Result<Admitted, Rejection> {
        admit(site, &AssociationPolicy::default(), request, |peer| peer.host.parse().into_iter().collect())
    }

    #[test]
    fn a_configured_sender_is_admitted_from_its_address_only() {
        assert!(decide(Some(&site()), &request("CT01", "HILUM", "10.1.2.3")).is_ok());
        assert!(decide(Some(&site()), &request("ANYWHERE", "HILUM", "192.0.2.7")).is_ok());
        let refused = decide(Some(&site()), &request("CT01", "HILUM", "10.1.2.4")).unwrap_err();
        assert_eq!(refused.reason, RejectReason::CallingAeTitleNotRecognized);
        assert!(refused.expected.contains("10.1.2.3") && refused.received.contains("10.1.2.4"), "{refused:?}");
    }

    #[test]
    fn a_stranger_is_told_the_nearest_name_and_the_command() {
        let refused = decide(Some(&site()), &request("CT1", "HILUM", "10.1.2.3")).unwrap_err();
        assert_eq!(refused.result, RejectResult::Permanent);
        assert!(refused.remedy.contains("`CT01`") && refused.remedy.contains("hilum peer add"), "{refused:?}");
        let refused = decide(Some(&site()), &request("PACS", "HILUM", "10.9.9.9")).unwrap_err();
        assert!(refused.received.contains("may not"), "{refused:?}");
    }

    #[test]
    fn a_wrong_called_title_is_that_and_not_the_callers_fault() {
        let refused = decide(Some(&site()), &request("CT01", "HILLUM", "10.1.2.3")).unwrap_err();
        assert_eq!(refused.reason, RejectReason::CalledAeTitleNotRecognized);
        assert!(refused.remedy.contains("`HILUM`"), "{refused:?}");
        let refused = decide(Some(&site()), &request("CT01", "OLD", "10.1.2.3")).unwrap_err();
        assert!(refused.received.contains("disabled"), "{refused:?}");
    }

    #[test]
    fn without_any_configuration_the_rejection_is_transient() {
        let refused = decide(None, &request("CT01", "HILUM", "10.1.2.3")).unwrap_err();
        assert_eq!(refused.result, RejectResult::Transient);
        assert_eq!(refused.reason, RejectReason::TemporaryCongestion);
    }

    #[test]
    fn a_name_that_cannot_be_resolved_is_a_transient_refusal() {
        let mut site = site();
        site.peers.push(peer("by-name", "DX01", "dx01.invalid", true));
        let refused =
            admit(Some(&site), &AssociationPolicy::default(), &request("DX01", "HILUM", "10.1.2.3"), |_| Vec::new())
                .unwrap_err();
        assert_eq!(refused.result, RejectResult::Transient);
        assert!(refused.received.contains("dx01.invalid"), "{refused:?}");
    }

    #[test]
    fn a_remedy_cannot_run_what_a_stranger_wrote() {
        let refused = decide(Some(&site()), &request("$(reboot)", "HILUM", "10.1.2.3")).unwrap_err();
        assert!(refused.remedy.contains("--ae-title '$(reboot)' "), "{refused:?}");
    }

    /// A site whose CT must come over TLS with this certificate and name, and a request of it.
    fn over_tls(sha256: &[u8], name: Option<&str>, security: Security) -> Result<Admitted, Rejection> {
        let mut site = site();
        site.peers[0].require_tls = true;
        site.peers[0].tls_certificate_sha256 = vec![Sha256Digest::of(sha256)];
        site.peers[0].tls_subject_name = name.map(str::to_owned);
        decide(Some(&site), &AssociationRequest { security, ..request("CT01", "HILUM", "10.1.2.3") })
    }

    #[test]
    fn a_certificate_is_bound_to_the_ae_title() {
        let der = Ca::new("CA").sign("ct-1", &["ct-1.example.org"]).der;
        let tls = |der: &[u8]| Security::Tls { peer_certificate: Some(der.to_vec()) };
        let admitted = over_tls(&der, Some("ct-1.example.org"), tls(&der)).unwrap();
        assert_eq!(admitted.subject, "peer `ct`");
        assert!(over_tls(&der, None, tls(&der)).is_ok());

        let other = Ca::new("CA").sign("ct-2", &["ct-2.example.org"]).der;
        let refused = over_tls(&der, None, tls(&other)).unwrap_err();
        assert_eq!(refused.result, RejectResult::Permanent);
        assert!(refused.expected.contains(&Sha256Digest::of(&der).to_string()), "{refused}");
        assert!(refused.received.contains("`ct-2.example.org`"), "{refused}");
        assert!(refused.remedy.contains("peer `ct`"), "{refused}");
        let refused = over_tls(&der, Some("dx.example.org"), tls(&der)).unwrap_err();
        assert!(refused.expected.contains("name `dx.example.org`"), "{refused}");
        let refused = over_tls(&der, None, Security::Tls { peer_certificate: None }).unwrap_err();
        assert_eq!(refused.received, "no certificate");
        assert!(over_tls(&der, None, tls(b"no certificate")).is_err());
    }

    #[test]
    fn a_peer_that_must_use_tls_is_told_so() {
        let refused = over_tls(b"", None, Security::Plain).unwrap_err();
        assert!(refused.expected.contains("over TLS from `CT01`") && refused.remedy.contains("[tls]"), "{refused}");
        // Whoever speaks without TLS to the port for TLS is told so first, whoever it is.
        let stranger = AssociationRequest { security: Security::PlainOnTlsPort, ..request("X", "Y", "10.1.2.3") };
        let refused = decide(Some(&site()), &stranger).unwrap_err();
        assert!(refused.expected.contains("over TLS on this port"), "{refused}");
    }

    #[test]
    fn of_namesakes_at_one_address_the_certificate_tells_which() {
        let der = Ca::new("CA").sign("second", &["second"]).der;
        let mut site = site();
        site.peers[0].tls_subject_name = Some("first".into());
        site.peers.push(Peer {
            name: "second".into(),
            tls_subject_name: Some("second".into()),
            ..site.peers[0].clone()
        });
        let security = Security::Tls { peer_certificate: Some(der) };
        let admitted =
            decide(Some(&site), &AssociationRequest { security, ..request("CT01", "HILUM", "10.1.2.3") }).unwrap();
        assert_eq!(admitted.subject, "peer `second`");
    }
}
