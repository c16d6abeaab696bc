//! `hilum peer`: other DICOM nodes.

use clap::{Args, Subcommand};

use super::{
    Address, Global, echo,
    failure::hinted,
    output::{Table, print, yes_no},
    site::{self, ListOptions},
};
use crate::types::{AeTitle, Duplicates, Peer, SiteConfig};

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
    /// Ask it by C-FIND how many instances a study has, before a study that it sent counts as complete
    #[arg(long)]
    count_at_source: bool,
    /// Refuse other bytes under a known SOP Instance UID instead of keeping them as a version
    #[arg(long)]
    refuse_duplicates: bool,
    /// The C-STORE status of such a refusal, such as 0x0111 [default: 0x0111]
    #[arg(long, value_name = "STATUS", requires = "refuse_duplicates", value_parser = status)]
    duplicate_status: Option<u16>,
}

/// A DIMSE status, decimal or with `0x`.
fn status(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "expected a DIMSE status, such as 0x0111".to_owned())
}

impl From<Add> for Peer {
    fn from(add: Add) -> Self {
        Self {
            name: add.name,
            ae_title: add.ae_title,
            host: add.host,
            port: add.port,
            may_store: add.may_store,
            contact: add.contact,
            count_at_source: add.count_at_source,
            duplicates: if add.refuse_duplicates { Duplicates::Refuse } else { Duplicates::KeepVersion },
            duplicate_status: add.duplicate_status,
        }
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
        Action::Test { name, calling } => {
            let site = site::load(global).await?;
            let calling = calling_as(&site, calling)?;
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
    let (peer, address) = find_callable(site, name)?;
    let verified = echo::verify(calling, &peer.ae_title, &address, echo::DEFAULT_TIMEOUT).await?;
    print(&echo::describe(&peer.ae_title, &address, &verified))
}

/// The AE title to call as: the one given, or the node's first.
pub(super) fn calling_as(site: &SiteConfig, given: Option<AeTitle>) -> anyhow::Result<AeTitle> {
    given.or_else(|| site::default_calling(site)).ok_or_else(|| {
        hinted(
            anyhow::anyhow!("this node has no AE title to call with"),
            "add one with `hilum local-ae add TITLE`, or give --calling",
        )
    })
}

/// The peer `name`, and where it can be called.
pub(super) fn find_callable<'a>(site: &'a SiteConfig, name: &str) -> anyhow::Result<(&'a Peer, Address)> {
    let Some(peer) = site.peers.iter().find(|peer| peer.name == name) else {
        let known: Vec<String> = site.peers.iter().map(|peer| format!("`{}`", peer.name)).collect();
        anyhow::bail!(site::unknown("peer", name, &known));
    };
    Ok((peer, callable(peer)?))
}

/// Where the peer can be called.
fn callable(peer: &Peer) -> anyhow::Result<Address> {
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
