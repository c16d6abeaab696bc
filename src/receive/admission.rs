//! Who may associate with us: a pure decision on the snapshot of the site configuration.

use std::net::IpAddr;

use super::hints::{self, shell_word};
use crate::{
    dimse::{AssociationRequest, NegotiationPolicy, Rejection, storage_policy},
    types::{Peer, SiteConfig},
};

/// Decides on a request. `peer_addresses` gives the addresses that a peer's host stands for; without a `site`
/// (nothing was ever read) nobody can be told from anybody, so the peer is asked to come back later.
pub fn admit(
    site: Option<&SiteConfig>,
    request: &AssociationRequest,
    peer_addresses: impl Fn(&Peer) -> Vec<IpAddr>,
) -> Result<NegotiationPolicy, Rejection> {
    let Some(site) = site else {
        return Err(Rejection::temporary_congestion(
            "a site configuration in Postgres or in the node's snapshot",
            "an association while there is none yet",
            "wait until Postgres can be reached, then run `hilum apply config/site.toml`",
        ));
    };
    let called = &request.called_ae_title;
    let local_ae = site.local_aes.iter().find(|ae| Some(&ae.ae_title) == called.title.as_ref());
    match local_ae {
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
        Some(_) => {}
    }
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
    let from_here = |peer: &&&Peer| peer.host == "*" || peer_addresses(peer).contains(&address);
    let Some(_) = namesakes.iter().filter(from_here).find(|peer| peer.may_store) else {
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
    Ok(storage_policy())
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
        types::{AeTitle, LocalAe},
    };

    fn peer(name: &str, ae_title: &str, host: &str, may_store: bool) -> Peer {
        Peer {
            name: name.into(),
            ae_title: AeTitle::new(ae_title).unwrap(),
            host: host.into(),
            port: None,
            may_store,
            contact: String::new(),
        }
    }

    fn site() -> SiteConfig {
        let local_ae = |title: &str, enabled| LocalAe {
            ae_title: AeTitle::new(title).unwrap(),
            enabled,
            description: String::new(),
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
        }
    }

    fn decide(site: Option<&SiteConfig>, request: &AssociationRequest) -> Result<NegotiationPolicy, Rejection> {
        admit(site, request, |peer| peer.host.parse().into_iter().collect())
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
        let refused = admit(Some(&site), &request("DX01", "HILUM", "10.1.2.3"), |_| Vec::new()).unwrap_err();
        assert_eq!(refused.result, RejectResult::Transient);
        assert!(refused.received.contains("dx01.invalid"), "{refused:?}");
    }

    #[test]
    fn a_remedy_cannot_run_what_a_stranger_wrote() {
        let refused = decide(Some(&site()), &request("$(reboot)", "HILUM", "10.1.2.3")).unwrap_err();
        assert!(refused.remedy.contains("--ae-title '$(reboot)' "), "{refused:?}");
    }
}
