//! `hilum peer`: other DICOM nodes.

use clap::{Args, Subcommand};

use super::{
    Address, Global, echo,
    failure::hinted,
    output::{Table, print, yes_no},
    probe,
    site::{self, ListOptions},
    tls,
};
use crate::{
    config::Config,
    types::{AeTitle, AssociationPolicy, Duplicates, Peer, Sha256Digest, SiteConfig},
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds a peer, or changes what is said of a known one
    Add(Box<Add>),
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
    /// TCP port it listens on; needed only where we call it [default: as it is]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// It may send us objects; `--may-store=false` takes that away [default: as it is, of a new peer false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    may_store: Option<bool>,
    /// Who to ask [default: as it is]
    #[arg(long, value_name = "TEXT")]
    contact: Option<String>,
    /// What its associations may do, as in the site file, such as "max_associations = 8" [default: as it is]
    #[arg(long, value_name = "TOML", value_parser = tls::policy)]
    policy: Option<AssociationPolicy>,
    /// Call it over TLS; without any option of TLS what is known of that stays as it is
    #[arg(long)]
    tls: bool,
    /// Refuse its associations unless they come over TLS
    #[arg(long)]
    require_tls: bool,
    /// SHA-256 fingerprint of its certificate; may be given again for the next one
    #[arg(long, value_name = "HEX", value_parser = tls::fingerprint)]
    tls_certificate_sha256: Vec<Sha256Digest>,
    /// A name that its certificate must have
    #[arg(long, value_name = "NAME")]
    tls_subject_name: Option<String>,
    /// Forget what is known of its TLS: neither called nor required, no certificate bound
    #[arg(long, conflicts_with_all = ["tls", "require_tls", "tls_certificate_sha256", "tls_subject_name"])]
    forget_tls: bool,
    /// Ask it by C-FIND how many instances a study has, before a study that it sent counts as complete [default: as it is]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    count_at_source: Option<bool>,
    /// Refuse other bytes under a known SOP Instance UID instead of keeping them as a version [default: as it is]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    refuse_duplicates: Option<bool>,
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

impl Add {
    /// What it leaves unsaid stays as it is: whoever mends an address must not open a door, or shut one.
    fn over(mut self, known: Option<&Peer>) -> Peer {
        let says_nothing_of_tls = !self.tls
            && !self.require_tls
            && self.tls_certificate_sha256.is_empty()
            && self.tls_subject_name.is_none()
            && !self.forget_tls;
        if let Some(known) = known.filter(|_| says_nothing_of_tls) {
            self.tls = known.tls;
            self.require_tls = known.require_tls;
            self.tls_certificate_sha256.clone_from(&known.tls_certificate_sha256);
            self.tls_subject_name.clone_from(&known.tls_subject_name);
        }
        let (duplicates, duplicate_status) = match self.refuse_duplicates {
            Some(true) => (Duplicates::Refuse, known.and_then(|known| known.duplicate_status)),
            Some(false) => (Duplicates::KeepVersion, None),
            None => known.map(|known| (known.duplicates, known.duplicate_status)).unwrap_or_default(),
        };
        Peer {
            name: self.name,
            ae_title: self.ae_title,
            host: self.host,
            port: self.port.or_else(|| known?.port),
            may_store: self.may_store.or_else(|| Some(known?.may_store)).unwrap_or_default(),
            contact: self.contact.or_else(|| Some(known?.contact.clone())).unwrap_or_default(),
            policy: self.policy.or_else(|| Some(known?.policy.clone())).unwrap_or_default(),
            tls: self.tls,
            require_tls: self.require_tls,
            tls_certificate_sha256: self.tls_certificate_sha256,
            tls_subject_name: self.tls_subject_name,
            count_at_source: self.count_at_source.or_else(|| Some(known?.count_at_source)).unwrap_or_default(),
            duplicates,
            duplicate_status: self.duplicate_status.or(duplicate_status),
        }
    }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            site::change(global, move |site| {
                let known = site.peers.iter().find(|peer| peer.name == add.name);
                let peer = add.over(known);
                site::upsert(&mut site.peers, peer, |peer| &peer.name);
                Ok(())
            })
            .await
        }
        Action::List(options) => {
            let mut peers = site::load(global).await?.peers;
            for peer in &mut peers {
                peer.policy = peer.policy.redacted();
            }
            options.print(&peers, table)
        }
        Action::Remove { name } => {
            site::change(global, move |site| {
                site::remove(site, "peer", &name, |site| &mut site.peers, |peer| &peer.name)
            })
            .await
        }
        Action::Probe(options) => probe::run(global, options).await,
        Action::Test { name, calling } => {
            let site = site::load(global).await?;
            let calling = calling_as(&site, calling)?;
            test(&global.load()?, &site, &name, &calling).await
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
pub(super) async fn test(config: &Config, site: &SiteConfig, name: &str, calling: &AeTitle) -> anyhow::Result<()> {
    let (peer, address) = find_callable(site, name)?;
    let tls = tls::client_for(config, peer)?;
    let verified = echo::verify(calling, &peer.ae_title, &address, echo::DEFAULT_TIMEOUT, tls).await?;
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

    #[test]
    fn adding_a_known_peer_again_keeps_what_is_not_said() {
        let add = |options: &[&str]| -> Add {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                add: Add,
            }
            let words = ["add", "ct", "--ae-title", "CT01", "--host", "192.0.2.1"].iter().chain(options);
            <Line as clap::Parser>::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).add
        };
        let fingerprint = Sha256Digest::of(b"x").to_string();
        let strict =
            add(&["--require-tls", "--tls-certificate-sha256", &fingerprint, "--policy", "max_associations = 4"]);
        let known = strict.over(None);
        assert!(known.require_tls && known.tls_certificate_sha256.len() == 1);
        let again = add(&[]).over(Some(&known));
        assert_eq!(again, known);
        let named = add(&["--tls-subject-name", "ct.example.org", "--policy", ""]).over(Some(&known));
        assert!(!named.require_tls && named.tls_certificate_sha256.is_empty());
        assert_eq!((named.tls_subject_name.as_deref(), named.policy.max_associations), (Some("ct.example.org"), None));
        let open = add(&["--forget-tls"]).over(Some(&known));
        assert!(!open.require_tls && open.tls_certificate_sha256.is_empty() && open.policy == known.policy);

        let whole = add(&[
            "--may-store",
            "--port",
            "104",
            "--contact",
            "ext. 4711",
            "--count-at-source",
            "--refuse-duplicates",
            "--duplicate-status",
            "0xC111",
        ]);
        let known = whole.over(None);
        assert!(known.may_store && known.count_at_source && known.duplicates == Duplicates::Refuse);
        assert_eq!(add(&[]).over(Some(&known)), known);
        assert_eq!(add(&["--refuse-duplicates"]).over(Some(&known)), known);
        let moved = add(&["--port", "11112"]).over(Some(&known));
        assert_eq!(moved, Peer { port: Some(11112), ..known.clone() });
        let less = ["--may-store=false", "--contact", "", "--count-at-source=false", "--refuse-duplicates=false"];
        let less = add(&less).over(Some(&known));
        assert!(!less.may_store && !less.count_at_source && less.contact.is_empty());
        assert_eq!((less.port, less.duplicates, less.duplicate_status), (Some(104), Duplicates::KeepVersion, None));
        assert!(!add(&[]).over(None).may_store, "a new peer may nothing that is not said");
    }

    #[tokio::test]
    async fn a_test_needs_a_peer_that_can_be_called() {
        let calling = AeTitle::new("HILUM").unwrap();
        let config = Config::defaults_for_dev(std::path::Path::new("no/such/folder"));
        let error = test(&config, &site(), "dx-room-1", &calling).await.unwrap_err();
        assert!(error.to_string().contains("`dx-room-1` only calls us"), "{error}");
        let error = test(&config, &site(), "nobody", &calling).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no peer `nobody`; known: `dx-room-1`, `pacs`");
    }
}
