//! `hilum route trial`, `compare`, `promote`, `rollback` and `history`: a second bundle beside a route's own.

use clap::{Args, builder::PossibleValuesParser};

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text},
    site,
    store::Store,
};
use crate::{
    db::{
        self,
        trial::{self, COMPARED_STUDIES, Promotion, Wish},
    },
    nn::Bundle,
    report::describe_comparison,
    types::{Compared, Route, SiteConfig, Trial, TrialMode},
};

#[derive(Debug, Args)]
pub(super) struct Begin {
    /// The route
    name: String,
    /// The bundle that is tried, a folder below `models_dir`; see `hilum model list`
    #[arg(long, value_name = "NAME", required_unless_present = "end")]
    bundle: Option<String>,
    /// What becomes of its results: shadow keeps them internal, canary sends them of its share of the studies
    #[arg(long, value_name = "MODE", required_unless_present = "end",
          value_parser = PossibleValuesParser::new(TrialMode::ALL.map(TrialMode::name)))]
    mode: Option<String>,
    /// How many of the route's studies it gets [default: 100 for shadow; a canary's must be given]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    share_percent: Option<u32>,
    /// Ends the trial: the route's own bundle goes on alone
    #[arg(long, conflicts_with_all = ["bundle", "mode", "share_percent"])]
    end: bool,
}

#[derive(Debug, Args)]
pub(super) struct Compare {
    /// The route
    name: String,
    /// The bundle to compare with the route's own [default: the one that is tried]
    #[arg(long, value_name = "NAME")]
    with: Option<String>,
    /// The newest studies that both have finished, at most so many
    #[arg(long, default_value_t = COMPARED_STUDIES, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The route
    name: String,
    /// Why, for the record
    #[arg(long, value_name = "WORDS", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Also when no study has been analysed by both bundles
    #[arg(long)]
    untried: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The route
    name: String,
    /// Why, for the record
    #[arg(long, value_name = "WORDS", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Also when the bundle is not what it was before the promotion
    #[arg(long)]
    changed: bool,
}

#[derive(Debug, Args)]
pub(super) struct History {
    /// Only of this route
    name: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn begin(global: &Global, options: Begin) -> anyhow::Result<()> {
    let Begin { name, bundle, mode, share_percent, end } = options;
    let trial = if end { None } else { Some(trial_of(bundle, mode.as_deref(), share_percent)?) };
    if let Some(trial) = &trial {
        let mut tried = find(&site::load(global).await?, &name)?.clone();
        tried.trial = Some(trial.clone());
        site::check_bundles(&global.load()?, &[tried])?;
    }
    site::change(global, move |site| {
        let route = site.routes.iter_mut().find(|route| route.name == name);
        route.ok_or_else(|| format!("there is no route `{name}` any more"))?.trial = trial;
        Ok(())
    })
    .await
}

fn trial_of(bundle: Option<String>, mode: Option<&str>, share_percent: Option<u32>) -> anyhow::Result<Trial> {
    let (Some(bundle), Some(mode)) = (bundle, mode.and_then(TrialMode::from_name)) else {
        anyhow::bail!("give --bundle and --mode, or --end");
    };
    let share_percent = match (share_percent, mode) {
        (Some(share_percent), _) => share_percent,
        (None, TrialMode::Shadow) => 100,
        (None, TrialMode::Canary) => anyhow::bail!(
            "a canary's results are sent: say of how many studies with --share-percent, such as --share-percent 5"
        ),
    };
    Ok(Trial { bundle, mode, share_percent })
}

fn find<'a>(site: &'a SiteConfig, name: &str) -> anyhow::Result<&'a Route> {
    let known: Vec<String> = site.routes.iter().map(|route| format!("`{}`", route.name)).collect();
    let route = site.routes.iter().find(|route| route.name == name);
    route.ok_or_else(|| anyhow::anyhow!(site::unknown("route", name, &known)))
}

pub(super) async fn compare(global: &Global, options: &Compare) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let compared = compare_in(&store, options).await;
    store.close().await?;
    let compared = compared?;
    if options.json { print_json(&compared) } else { print(&text(&compared)) }
}

async fn compare_in(store: &Store, options: &Compare) -> anyhow::Result<Compared> {
    let mut connection = store.db.acquire().await?;
    let site = db::site::load(&mut connection).await?;
    let route = find(&site, &options.name)?;
    let Some(tried) = options.with.as_deref().or(route.trial.as_ref().map(|trial| trial.bundle.as_str())) else {
        anyhow::bail!(
            "route `{}` tries no bundle: name one with --with, or begin with `hilum route trial {} --bundle NAME --mode shadow`",
            route.name,
            route.name
        );
    };
    Ok(trial::compare(&mut connection, &route.name, &route.bundle, tried, options.limit).await?)
}

fn text(compared: &Compared) -> String {
    let mut lines = vec![format!("route `{}`", compared.route)];
    lines.extend(describe_comparison(compared));
    let mut text = lines.join("\n");
    if !compared.comparison.furthest.is_empty() {
        let mut table = Table::new(&["OWN", "TRIED", "STUDY INSTANCE UID"]);
        for study in &compared.comparison.furthest {
            let share = |output: f64| format!("{:.1} %", output * 100.0);
            table.row([share(study.own), share(study.tried), study.study_instance_uid.clone()]);
        }
        text = format!("{text}\n\nwhere the outputs differ most, one line for each study:\n{}", table.render(""));
    }
    text
}

pub(super) async fn promote(global: &Global, options: &Promote) -> anyhow::Result<()> {
    let untried = options.untried;
    change(global, &options.reason, async |tx, wish| trial::promote(tx, &options.name, wish, untried).await).await
}

pub(super) async fn roll_back(global: &Global, options: &Rollback) -> anyhow::Result<()> {
    let models_dir = global.load()?.inference.models_dir;
    let digest_now = |name: &str| Bundle::open(&models_dir.join(name)).ok().map(|bundle| bundle.identity().digest);
    let changed = options.changed;
    change(global, &options.reason, async |tx, wish| {
        trial::roll_back(tx, &options.name, wish, digest_now, changed).await
    })
    .await
}

/// Changes the bundle of a route for the reason that the user gives, and says so.
async fn change(
    global: &Global,
    reason: &str,
    change: impl AsyncFnOnce(&mut db::Connection, Wish<'_>) -> db::Result<Promotion>,
) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let made = async {
        let mut tx = store.db.begin().await?;
        let made = change(&mut tx, Wish { by_whom: &super::user(), reason }).await?;
        tx.commit().await.map_err(db::DbError::from)?;
        anyhow::Ok(made)
    }
    .await;
    store.close().await?;
    print(&done(&made?))
}

fn done(made: &Promotion) -> String {
    let Promotion { route, kind, from_bundle, to_bundle, .. } = made;
    format!(
        "{kind}: route `{route}` has bundle `{to_bundle}` instead of `{from_bundle}`; studies that complete from now on get \
         it, running nodes take it over without a restart"
    )
}

pub(super) async fn history(global: &Global, options: &History) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let rows = async {
        let mut connection = store.db.acquire().await?;
        trial::promotions(&mut connection, options.name.as_deref(), options.limit).await
    }
    .await;
    store.close().await?;
    let rows = rows?;
    if options.json {
        return print_json(&rows.iter().map(to_json).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["WHEN", "ROUTE", "WHAT", "FROM", "TO", "BY", "REASON"]);
    for row in rows {
        table.row([time_text(row.at), row.route, row.kind, row.from_bundle, row.to_bundle, row.by_whom, row.reason]);
    }
    print(&table.render("no bundle was promoted or rolled back yet"))
}

fn to_json(row: &Promotion) -> serde_json::Value {
    serde_json::json!({
        "at": time_json(row.at),
        "route": row.route,
        "kind": row.kind,
        "from_bundle": row.from_bundle,
        "to_bundle": row.to_bundle,
        "by_whom": row.by_whom,
        "reason": row.reason,
        "comparison": row.comparison,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_says_how_many_studies() {
        let trial = |mode, share| trial_of(Some("next".to_owned()), Some(mode), share);
        assert_eq!(trial("shadow", None).unwrap().share_percent, 100);
        assert_eq!(trial("canary", Some(5)).unwrap().share_percent, 5);
        assert!(trial("canary", None).unwrap_err().to_string().contains("--share-percent 5"));
        assert!(trial_of(None, Some("shadow"), None).is_err());
    }
}
