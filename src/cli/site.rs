//! What `apply`, `local-ae`, `peer`, `destination` and `route` share: reading and changing the site configuration.

use clap::Args;

use super::{
    Global,
    output::{print, print_json},
    store::Store,
};
use crate::{
    config::Config,
    db::site::{self, SiteDiff},
    infer::pipeline::check_pipeline,
    nn::{MANIFEST_FILE_NAME, Manifest},
    types::{AeTitle, Route, SiteConfig},
};

/// How a list is shown.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ListOptions {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl ListOptions {
    pub(super) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints `values` as JSON, or as the table that `table` makes.
    pub(super) fn print<T: serde::Serialize>(self, values: &[T], table: impl Fn(&[T]) -> String) -> anyhow::Result<()> {
        if self.json { print_json(&values) } else { print(&table(values)) }
    }
}

/// The site configuration as it is in Postgres.
pub(super) async fn load(global: &Global) -> anyhow::Result<SiteConfig> {
    let store = Store::open(&global.load()?).await?;
    let loaded = async { site::load(&mut *store.db.acquire().await?).await }.await;
    store.close().await?;
    Ok(loaded?)
}

/// Refuses routes whose bundles are here and belong to another pipeline. What is not here, or not sound, is for `hilum
/// doctor` to tell: the node may be another machine.
pub(super) fn check_bundles(config: &Config, routes: &[Route]) -> anyhow::Result<()> {
    let problems: Vec<String> = routes
        .iter()
        .flat_map(|route| route.bundles().map(move |bundle| (route, bundle)))
        .filter_map(|(route, bundle)| {
            let path = config.inference.models_dir.join(bundle).join(MANIFEST_FILE_NAME);
            let manifest = Manifest::parse(&fs_err::read_to_string(path).ok()?).ok()?;
            let mismatch = check_pipeline(&manifest, bundle, route.pipeline).err()?;
            Some(format!("route `{}`: {mismatch}", route.name))
        })
        .collect();
    anyhow::ensure!(problems.is_empty(), problems.join("\n"));
    Ok(())
}

/// Changes the site configuration and returns the differences; nothing is kept with `dry_run`.
pub(super) async fn change_diff(
    global: &Global,
    dry_run: bool,
    change: impl FnOnce(&mut SiteConfig) -> Result<(), String>,
) -> anyhow::Result<SiteDiff> {
    let store = Store::open(&global.load()?).await?;
    let changed = site::change(&store.db, dry_run, change).await;
    store.close().await?;
    Ok(changed?)
}

/// Changes the site configuration and says what changed.
pub(super) async fn change(
    global: &Global,
    change: impl FnOnce(&mut SiteConfig) -> Result<(), String>,
) -> anyhow::Result<()> {
    let diff = change_diff(global, false, change).await?;
    print(&describe(&diff, false))
}

/// The differences in words.
pub(super) fn describe(diff: &SiteDiff, dry_run: bool) -> String {
    let end = match (diff.lines.is_empty(), dry_run) {
        (true, _) => "everything is like that already; nothing changes",
        (false, true) => "dry run: nothing has been changed",
        (false, false) => "done; running nodes take it over without a restart",
    };
    let lines: Vec<&str> = diff.lines.iter().map(String::as_str).chain([end]).collect();
    lines.join("\n")
}

/// Puts `entry` in the place of the one with its name, or at the end.
pub(super) fn upsert<T>(entries: &mut Vec<T>, entry: T, name: impl Fn(&T) -> &str) {
    match entries.iter_mut().find(|known| name(known) == name(&entry)) {
        Some(known) => *known = entry,
        None => entries.push(entry),
    }
}

/// Removes what `entries` gives of the site under `wanted`, unless something else needs it.
pub(super) fn remove<T>(
    site: &mut SiteConfig,
    noun: &str,
    wanted: &str,
    entries: impl Fn(&mut SiteConfig) -> &mut Vec<T>,
    name: impl Fn(&T) -> &str,
) -> Result<(), String> {
    let before = site.problems();
    let list = entries(site);
    let known: Vec<String> = list.iter().map(|entry| format!("`{}`", name(entry))).collect();
    list.retain(|entry| name(entry) != wanted);
    if list.len() == known.len() {
        return Err(unknown(noun, wanted, &known));
    }
    let broken: Vec<String> = site
        .problems()
        .into_iter()
        .filter(|problem| !before.contains(problem))
        .map(|problem| format!("  {} {}", problem.subject, problem.problem))
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{noun} `{wanted}` is in use and stays; without it\n{}\nremove or change what uses it first",
        broken.join("\n")
    ))
}

/// `there is no peer `x`; known are …`.
pub(super) fn unknown(noun: &str, wanted: &str, known: &[String]) -> String {
    if known.is_empty() {
        format!("there is no {noun} `{wanted}`, nor any other")
    } else {
        format!("there is no {noun} `{wanted}`; known: {}", known.join(", "))
    }
}

/// The title that we call peers as when none is given.
pub(super) fn default_calling(site: &SiteConfig) -> Option<AeTitle> {
    let enabled = site.local_aes.iter().find(|ae| ae.enabled);
    enabled.or_else(|| site.local_aes.first()).map(|ae| ae.ae_title.clone())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        nn::{CT_BUNDLE_NAME, init_ct_bundle},
        types::Pipeline,
    };

    #[test]
    fn a_route_whose_bundle_is_of_another_pipeline_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        init_ct_bundle(&folder.path().join(CT_BUNDLE_NAME)).unwrap();
        let mut config = Config::defaults_for_dev(Path::new("data"));
        config.inference.models_dir = folder.path().to_owned();
        let mut routes = super::super::tests::site().routes;
        check_bundles(&config, &routes).expect("a bundle that is not here is not judged");
        routes[0].bundle = CT_BUNDLE_NAME.to_owned();
        insta::assert_snapshot!(check_bundles(&config, &routes).unwrap_err(), @"route `chest`: bundle `ct-lung-measurement` belongs to pipeline `chest_ct` and its route says `chest_radiograph`; give the route the pipeline of its bundle, or another bundle (`hilum route add` replaces it, `hilum model list` names the bundles)");
        routes[0].pipeline = Pipeline::ChestCt;
        check_bundles(&config, &routes).unwrap();
    }
}
