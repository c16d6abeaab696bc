//! `hilum destination`: where results go.

use clap::{Args, Subcommand};

use super::{
    Global,
    output::{Table, yes_no},
    peer,
    site::{self, ListOptions},
};
use crate::types::{AeTitle, Destination, DestinationKind};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds a destination, or replaces what is known of it
    Add(Add),
    /// Lists them
    List(ListOptions),
    /// Removes one that no route sends to
    Remove {
        /// Which
        name: String,
    },
    /// Verifies its peer with C-ECHO, calling as it will be called for results
    Test {
        /// Which
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The administrators' name for it, unique
    name: String,
    /// Name of the peer to send to; it must have a host and a port
    #[arg(long, value_name = "NAME")]
    peer: String,
    /// AE title that we call as
    #[arg(long, value_name = "TITLE")]
    calling_ae_title: AeTitle,
    /// Send reports of studies that were not analysed as well
    #[arg(long)]
    send_not_analysed: bool,
}

impl From<Add> for Destination {
    fn from(add: Add) -> Self {
        let Add { name, peer, calling_ae_title, send_not_analysed } = add;
        Self { name, kind: DestinationKind::Dicom, peer, calling_ae_title, send_not_analysed }
    }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            let destination = Destination::from(add);
            site::change(global, move |site| {
                site::upsert(&mut site.destinations, destination, |destination| &destination.name);
                Ok(())
            })
            .await
        }
        Action::List(options) => options.print(&site::load(global).await?.destinations, table),
        Action::Remove { name } => {
            site::change(global, move |site| {
                site::remove(site, "destination", &name, |site| &mut site.destinations, |destination| &destination.name)
            })
            .await
        }
        Action::Test { name } => {
            let site = site::load(global).await?;
            let Some(destination) = site.destinations.iter().find(|destination| destination.name == name) else {
                let known: Vec<String> =
                    site.destinations.iter().map(|destination| format!("`{}`", destination.name)).collect();
                anyhow::bail!(site::unknown("destination", &name, &known));
            };
            peer::test(&global.load()?, &site, &destination.peer, &destination.calling_ae_title).await
        }
    }
}

fn table(destinations: &[Destination]) -> String {
    let mut table = Table::new(&["NAME", "KIND", "PEER", "CALLING", "SENDS NOT ANALYSED"]);
    for destination in destinations {
        let kind = match destination.kind {
            DestinationKind::Dicom => "dicom",
        };
        table.row([
            destination.name.clone(),
            kind.to_owned(),
            destination.peer.clone(),
            destination.calling_ae_title.to_string(),
            yes_no(destination.send_not_analysed),
        ]);
    }
    table.render("no destinations; add one with `hilum destination add NAME --peer PEER --calling-ae-title TITLE`")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::site, *};

    #[test]
    fn the_table_of_destinations() {
        insta::assert_snapshot!(table(&site().destinations), @"
        NAME  KIND   PEER  CALLING  SENDS NOT ANALYSED
        pacs  dicom  pacs  HILUM    no
        ");
    }
}
