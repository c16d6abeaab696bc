//! `hilum peer`: other DICOM nodes.

use clap::{Args, Subcommand};

use super::{
    Address, Global, echo,
    failure::hinted,
    output::{Table, print, yes_no},
    probe,
    site::{self, ListOptions},
};
use crate::types::{AeTitle, Peer, SiteConfig};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds a peer, or replaces what is known of it
    Add(Add),
    /// Lists them
    List(ListOptions),
    /// Removes one that no destination names
    Remove {
        /// Which
        name: String,
    },
    /// Verifies a peer with C-ECHO
    Test {
        /// Which
        name: String,
        /// Call as this AE title [default: the first enabled local AE]
        #[arg(long, value_name = "TITLE")]
        calling: Option<AeTitle>,
    },
    /// Finds out what a peer accepts, shows it with what it offers to us, and keeps it for the next time
    Probe(probe::Options),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The administrators' name for it, unique
    name: String,
    /// The AE title it calls with and answers to
    #[arg(long, value_name = "TITLE")]
    ae_title: AeTitle,
    /// Host name or address; associations from elsewhere are refused, `*` lets it call from anywhere
    #[arg(long)]
    host: String,
    /// TCP port it listens on; needed only where we call it
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// It may send us objects
    #[arg(long)]
    may_store: bool,
    /// Who to ask
    #[arg(long, value_name = "TEXT", default_value = "")]
    contact: String,
}

impl From<Add> for Peer {
    fn from(add: Add) -> Self {
        let Add { name, ae_title, host, port, may_store, contact } = add;
        Self { name, ae_title, host, port, may_store, contact }
    }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            let peer = Peer::from(add);
            site::change(global, move |site| {
                site::upsert(&mut site.peers, peer, |peer| &peer.name);
                Ok(())
            })
            .await
        }
        Action::List(options) => options.print(&site::load(global).await?.peers, table),
        Action::Remove { name } => {
            site::change(global, move |site| {
                site::remove(site, "peer", &name, |site| &mut site.peers, |peer| &peer.name)
            })
            .await
        }
        Action::Probe(options) => probe::run(global, options).await,
        Action::Test { name, calling } => {
            let site = site::load(global).await?;
            let Some(calling) = calling.or_else(|| site::default_calling(&site)) else {
                return Err(hinted(
                    anyhow::anyhow!("this node has no AE title to call with"),
                    "add one with `hilum local-ae add TITLE`, or give --calling",
                ));
            };
            test(&site, &name, &calling).await
        }
    }
}

fn table(peers: &[Peer]) -> String {
    let mut table = Table::new(&["NAME", "AE TITLE", "HOST", "PORT", "MAY STORE", "CONTACT"]);
    for peer in peers {
        table.row([
            peer.name.clone(),
            peer.ae_title.to_string(),
            peer.host.clone(),
            peer.port.map(|port| port.to_string()).unwrap_or_default(),
            yes_no(peer.may_store),
            peer.contact.clone(),
        ]);
    }
    table.render("no peers; add one with `hilum peer add NAME --ae-title TITLE --host HOST`")
}

/// C-ECHO to the peer `name`.
pub(super) async fn test(site: &SiteConfig, name: &str, calling: &AeTitle) -> anyhow::Result<()> {
    let Some(peer) = site.peers.iter().find(|peer| peer.name == name) else {
        let known: Vec<String> = site.peers.iter().map(|peer| format!("`{}`", peer.name)).collect();
        anyhow::bail!(site::unknown("peer", name, &known));
    };
    let address = callable(peer)?;
    let verified = echo::verify(calling, &peer.ae_title, &address, echo::DEFAULT_TIMEOUT).await?;
    print(&echo::describe(&peer.ae_title, &address, &verified))
}

/// Where the peer can be called.
pub(super) fn callable(peer: &Peer) -> anyhow::Result<Address> {
    match peer.port {
        Some(port) if peer.host != "*" => Ok(Address { host: peer.host.clone(), port }),
        _ => Err(hinted(
            anyhow::anyhow!("peer `{}` only calls us: it has no host and port to call", peer.name),
            format!("give it both with `hilum peer add {} --host HOST --port PORT …`, if it listens at all", peer.name),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::site, *};

    #[test]
    fn the_table_of_peers() {
        insta::assert_snapshot!(table(&site().peers), @"
        NAME       AE TITLE   HOST              PORT  MAY STORE  CONTACT
        dx-room-1  DX_ROOM_1  192.0.2.21        -     yes        ext. 4711
        pacs       PACS       pacs.example.org  104   no         -
        ");
    }

    #[tokio::test]
    async fn a_test_needs_a_peer_that_can_be_called() {
        let calling = AeTitle::new("HILUM").unwrap();
        let error = test(&site(), "dx-room-1", &calling).await.unwrap_err();
        assert!(error.to_string().contains("`dx-room-1` only calls us"), "{error}");
        let error = test(&site(), "nobody", &calling).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no peer `nobody`; known: `dx-room-1`, `pacs`");
    }
}
