//! `hilum doctor allow`: does what the remedy of a refusal says, and notes who did it.

use clap::Args;

use super::super::{Global, failure::hinted, output::print, site, store::Store};
use crate::{
    db::refusal::{self, RefusalRow},
    types::{AeTitle, LocalAe, Peer, SiteConfig},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Number of the refusal, as `hilum doctor` shows it
    id: i64,
    /// Name for a new peer [default: its AE title in lower case]
    #[arg(long)]
    name: Option<String>,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let Options { id, name } = options;
    let store = Store::open(&global.load()?).await?;
    let allowed = async {
        let row = refusal::get(&mut *store.db.acquire().await?, id).await?;
        let row = row.ok_or_else(|| {
            hinted(anyhow::anyhow!("there is no refusal {id}"), "`hilum doctor` shows them with their numbers")
        })?;
        anyhow::Ok(refusal::allow(&store.db, id, &who(), |site| let_in(site, &row, name)).await?)
    }
    .await;
    store.close().await?;
    print(&site::describe(&allowed?, false))
}

/// Who runs this command, as far as the operating system knows.
fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let number = rustix::process::getuid().as_raw();
    match user {
        Some(user) => format!("{} (uid {number})", user.escape_debug()),
        None => format!("uid {number}"),
    }
}

/// Changes the site so that the caller of `row` is admitted, or says why that cannot be done from here.
fn let_in(site: &mut SiteConfig, row: &RefusalRow, name: Option<String>) -> Result<(), String> {
    let title = |text: &str| {
        AeTitle::new(text)
            .map_err(|error| format!("`{text}` cannot be an AE title ({error}); correct it at the sender"))
    };
    match (row.kind.as_str(), row.reason.as_str()) {
        ("association", "called_ae_title") => {
            let ae_title = title(&row.called_ae_title)?;
            match site.local_aes.iter_mut().find(|ae| ae.ae_title == ae_title) {
                Some(known) => known.enabled = true,
                None => site.local_aes.push(LocalAe::new(ae_title)),
            }
            Ok(())
        }
        ("association", "calling_ae_title" | "peer_address") => {
            let ae_title = title(&row.calling_ae_title)?;
            let is_here = |peer: &Peer| peer.host == row.peer_address || peer.host == "*";
            if let Some(known) = site.peers.iter_mut().find(|peer| peer.ae_title == ae_title && is_here(peer)) {
                known.may_store = true;
                return Ok(());
            }
            let wanted = name.unwrap_or_else(|| ae_title.as_str().to_lowercase().replace(' ', "-"));
            let peer =
                Peer { may_store: true, ..Peer::new(free_name(site, wanted), ae_title, row.peer_address.clone()) };
            site.peers.push(peer);
            Ok(())
        }
        _ => Err(format!("this {} cannot be allowed by a change here; its remedy: {}", row.kind, row.remedy)),
    }
}

fn free_name(site: &SiteConfig, wanted: String) -> String {
    let is_free = |name: &String| !site.peers.iter().any(|peer| peer.name == *name);
    let numbered = (2_u32..).map(|number| format!("{wanted}-{number}"));
    std::iter::once(wanted.clone()).chain(numbered).find(is_free).unwrap_or(wanted)
}

#[cfg(test)]
mod tests {
    use super::{super::super::tests::site as sample, *};

    fn refused(reason: &str, calling: &str, called: &str, address: &str) -> RefusalRow {
        RefusalRow {
            reason: reason.into(),
            calling_ae_title: calling.into(),
            called_ae_title: called.into(),
            peer_address: address.into(),
            ..super::super::refusals::tests::row()
        }
    }

    #[test]
    fn a_stranger_becomes_a_peer_and_a_known_one_may_store() {
        let mut site = sample();
        let before = site.peers.len();
        let_in(&mut site, &refused("calling_ae_title", "CT 01", "HILUM", "192.0.2.7"), None).unwrap();
        let added = site.peers.last().unwrap();
        assert_eq!((added.name.as_str(), added.host.as_str(), added.may_store), ("ct-01", "192.0.2.7", true));
        // The same scanner from another address is a further peer.
        let_in(&mut site, &refused("peer_address", "CT 01", "HILUM", "192.0.2.8"), None).unwrap();
        assert_eq!(site.peers.last().unwrap().name, "ct-01-2");
        // Known there, but not allowed.
        site.peers[before].may_store = false;
        let_in(&mut site, &refused("calling_ae_title", "CT 01", "HILUM", "192.0.2.7"), Some("x".into())).unwrap();
        assert!(site.peers[before].may_store && site.peers.len() == before + 2);
    }

    #[test]
    fn an_unknown_called_title_becomes_a_local_ae_and_a_disabled_one_is_enabled() {
        let mut site = sample();
        let_in(&mut site, &refused("called_ae_title", "CT01", "HILUM2", "192.0.2.7"), None).unwrap();
        assert!(site.local_aes.iter().any(|ae| ae.ae_title.as_str() == "HILUM2" && ae.enabled));
        site.local_aes.iter_mut().for_each(|ae| ae.enabled = false);
        let_in(&mut site, &refused("called_ae_title", "CT01", "HILUM2", "192.0.2.7"), None).unwrap();
        assert!(site.local_aes.iter().any(|ae| ae.ae_title.as_str() == "HILUM2" && ae.enabled));
    }

    #[test]
    fn what_no_change_here_can_mend_is_said() {
        let mut site = sample();
        let error = let_in(&mut site, &refused("limit_reached", "CT01", "HILUM", "192.0.2.7"), None).unwrap_err();
        assert!(error.contains("cannot be allowed") && error.contains("its remedy"), "{error}");
        let error = let_in(&mut site, &refused("calling_ae_title", "C\\T", "HILUM", "192.0.2.7"), None).unwrap_err();
        assert!(error.contains("correct it at the sender"), "{error}");
        assert_eq!(site, sample());
    }
}
