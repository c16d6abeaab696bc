//! `hilum local-ae`: AE titles that this node answers to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::{Args, Subcommand};

use super::{
    Address, Global, echo,
    failure::hinted,
    output::{Table, print, yes_no},
    site::{self, ListOptions},
    tls,
};
use crate::{
    dimse::{RejectReason, RequestError},
    types::{AeTitle, AssociationPolicy, LocalAe, SiteConfig},
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds an AE title, or changes what is said of a known one
    Add(Box<Add>),
    /// Lists them
    List(ListOptions),
    /// Removes one that no route listens to
    Remove {
        /// Which
        #[arg(value_name = "TITLE")]
        ae_title: AeTitle,
    },
    /// Calls this node's own listener with C-ECHO
    Test {
        /// Which
        #[arg(value_name = "TITLE")]
        ae_title: AeTitle,
        /// Call as this peer [default: a known peer that may store from this machine]
        #[arg(long, value_name = "TITLE")]
        calling: Option<AeTitle>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// 1 to 16 characters
    #[arg(value_name = "TITLE")]
    ae_title: AeTitle,
    /// Refuse associations to it without forgetting it
    #[arg(long)]
    disabled: bool,
    /// For people [default: as it is]
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What associations to it may do, as in the site file, such as "max_associations = 8" [default: as it is]
    #[arg(long, value_name = "TOML", value_parser = tls::policy)]
    policy: Option<AssociationPolicy>,
}

impl Add {
    /// What it leaves unsaid stays as it is.
    fn over(self, known: Option<&LocalAe>) -> LocalAe {
        LocalAe {
            ae_title: self.ae_title,
            enabled: !self.disabled,
            description: self.description.or_else(|| Some(known?.description.clone())).unwrap_or_default(),
            policy: self.policy.or_else(|| Some(known?.policy.clone())).unwrap_or_default(),
        }
    }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            site::change(global, move |site| {
                let known = site.local_aes.iter().find(|ae| ae.ae_title == add.ae_title);
                let local_ae = add.over(known);
                site::upsert(&mut site.local_aes, local_ae, |ae| ae.ae_title.as_str());
                Ok(())
            })
            .await
        }
        Action::List(options) => {
            let mut local_aes = site::load(global).await?.local_aes;
            for ae in &mut local_aes {
                ae.policy = ae.policy.redacted();
            }
            options.print(&local_aes, table)
        }
        Action::Remove { ae_title } => {
            site::change(global, move |site| {
                site::remove(site, "local AE", ae_title.as_str(), |site| &mut site.local_aes, |ae| ae.ae_title.as_str())
            })
            .await
        }
        Action::Test { ae_title, calling } => test(global, ae_title, calling).await,
    }
}

fn table(local_aes: &[LocalAe]) -> String {
    let mut table = Table::new(&["AE TITLE", "ENABLED", "DESCRIPTION"]);
    for ae in local_aes {
        table.row([ae.ae_title.to_string(), yes_no(ae.enabled), ae.description.clone()]);
    }
    table.render("no local AE titles; add one with `hilum local-ae add TITLE`")
}

async fn test(global: &Global, ae_title: AeTitle, calling: Option<AeTitle>) -> anyhow::Result<()> {
    let listen = global.load()?.dicom.listen;
    let site = site::load(global).await?;
    if !site.local_aes.iter().any(|ae| ae.ae_title == ae_title) {
        let known: Vec<String> = site.local_aes.iter().map(|ae| format!("`{}`", ae.ae_title)).collect();
        anyhow::bail!(site::unknown("local AE", ae_title.as_str(), &known));
    }
    let calling_was_given = calling.is_some();
    let calling = calling.or_else(|| admissible_caller(&site)).unwrap_or_else(|| ae_title.clone());
    let address = own_address(listen);
    match echo::verify(&calling, &ae_title, &address, echo::DEFAULT_TIMEOUT, None).await {
        Ok(verified) => print(&echo::describe(&ae_title, &address, &verified)),
        Err(error) => {
            let unknown_caller = matches!(
                error.downcast_ref::<RequestError>(),
                Some(RequestError::Rejected { reason: RejectReason::CallingAeTitleNotRecognized, .. })
            );
            if unknown_caller && !calling_was_given {
                return Err(hinted(
                    error,
                    "the listener answers, but only known peers may call: name one that may call from this machine with --calling",
                ));
            }
            Err(error)
        }
    }
}

/// A peer that may call from this machine, as far as its host tells.
fn admissible_caller(site: &SiteConfig) -> Option<AeTitle> {
    let from_here = |host: &str| {
        host == "*" || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    site.peers.iter().find(|peer| peer.may_store && from_here(&peer.host)).map(|peer| peer.ae_title.clone())
}

/// Where this machine reaches its own listener.
fn own_address(listen: SocketAddr) -> Address {
    let host = match listen.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    Address { host: IpAddr::to_string(&host), port: listen.port() }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::site, *};

    #[test]
    fn the_table_of_local_aes() {
        insta::assert_snapshot!(table(&site().local_aes), @"
        AE TITLE  ENABLED  DESCRIPTION
        HILUM     yes      Chest imaging AI
        OLD       no       -
        ");
    }

    #[test]
    fn the_own_listener_is_reached_on_loopback_when_it_listens_everywhere() {
        assert_eq!(own_address("0.0.0.0:11112".parse().unwrap()).to_string(), "127.0.0.1:11112");
        assert_eq!(own_address("[::]:104".parse().unwrap()).to_string(), "[::1]:104");
        assert_eq!(own_address("192.0.2.5:104".parse().unwrap()).to_string(), "192.0.2.5:104");
    }

    #[test]
    fn a_test_calls_as_a_peer_that_may_call_from_here() {
        let mut site = site();
        assert_eq!(admissible_caller(&site), None);
        site.peers[0].host = "*".to_owned();
        assert_eq!(admissible_caller(&site).unwrap().as_str(), "DX_ROOM_1");
    }
}
