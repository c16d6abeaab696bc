//! `hilum route`: which studies get which analysis.

use super::{
    Global,
    output::{Table, print, yes_no},
    site::{self, ListOptions},
    trial,
};
use crate::{
    assemble::{StudyToRoute, choose_route},
    report::describe_trial,
    types::{AeTitle, LateImages, Pipeline, Requirement, ResultRule, Route, RunPriority, SiteConfig},
};
use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
};

const NEW_REVISION: &str = "new_revision";
const IGNORE: &str = "ignore";

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds a route, or replaces what is known of it; a bundle that is tried on it stays on trial
    Add(Box<Add>),
    /// Lists them in the order in which they are tried
    List(ListOptions),
    /// Removes one
    Remove {
        /// Which
        name: String,
    },
    /// Says whether the route would take a study, and why not
    Test(Test),
    /// Tries a bundle beside the route's own, or ends that
    Trial(trial::Begin),
    /// Shows how two bundles of a route agree on the studies that both have seen
    Compare(trial::Compare),
    /// Makes the bundle that is tried the route's own
    Promote(trial::Promote),
    /// Makes the bundle before the last promotion the route's own again
    Rollback(trial::Rollback),
    /// Lists promotions and rollbacks, newest first
    History(trial::History),
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The administrators' name for it, unique
    name: String,
    /// Our AE title that the study is sent to
    #[arg(long, value_name = "TITLE")]
    called_ae_title: AeTitle,
    /// Only studies with one of these modalities, such as CR,DX
    #[arg(long, required = true, value_delimiter = ',', value_parser = modality)]
    modalities: Vec<String>,
    /// What to run
    #[arg(long, value_parser = PossibleValuesParser::new(Pipeline::ALL.map(Pipeline::name)).try_map(|name| pipeline(&name)))]
    pipeline: Pipeline,
    /// Name of the bundle, a folder below `models_dir`; see `hilum model list`
    #[arg(long)]
    bundle: String,
    /// Routes are tried in this order, lower first
    #[arg(long, default_value_t = 100, allow_negative_numbers = true)]
    order: i32,
    /// Only from these senders [default: any]
    #[arg(long, value_name = "TITLES", value_delimiter = ',')]
    calling_ae_titles: Vec<AeTitle>,
    /// A study is complete when nothing has arrived for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    quiet_seconds: u32,
    /// A study is complete at the latest so long after its first object
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    max_wait_seconds: u32,
    /// The same, when every association that stored to the study was released [default: --quiet-seconds]
    #[arg(long, value_name = "SECONDS")]
    released_quiet_seconds: Option<u32>,
    /// The same, when an association was lost and its sender has not come again [default: three times --quiet-seconds]
    #[arg(long, value_name = "SECONDS")]
    lost_quiet_seconds: Option<u32>,
    /// What must be there before, such as 'modality = "DX" and instances >= 2'; docs/operations.md has the language
    #[arg(long, value_name = "REQUIREMENT")]
    required: Option<Requirement>,
    /// What becomes of images that arrive when their study is complete already
    #[arg(long, value_name = "POLICY", default_value = NEW_REVISION,
          value_parser = PossibleValuesParser::new([NEW_REVISION, IGNORE]))]
    late_images: String,
    /// With new_revision: only so long after the study was complete [default: for ever]
    #[arg(long, value_name = "SECONDS")]
    late_images_within_seconds: Option<u32>,
    /// Whether its studies go before others
    #[arg(long, value_name = "PRIORITY", default_value = "routine", value_parser = PossibleValuesParser::new(["routine", "stat"]))]
    priority: String,
    /// Names of destinations that get the results [default: none, results stay here]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    destinations: Vec<String>,
    /// A rule over results, an inline table as in a site file; may be given several times; docs/results.md explains it
    #[arg(long, value_name = "RULE", value_parser = rule)]
    rule: Vec<ResultRule>,
    /// Of a route that is there already, drop its rules over results instead of keeping them when no --rule is given
    #[arg(long, conflicts_with = "rule")]
    no_rules: bool,
    /// Keep the route but do not use it
    #[arg(long)]
    disabled: bool,
}

#[derive(Debug, Args)]
pub(super) struct Test {
    /// Which
    name: String,
    /// Who sends the study
    #[arg(long, value_name = "TITLE")]
    calling: AeTitle,
    /// A modality in the study; may be given several times
    #[arg(long, required = true, value_delimiter = ',', value_parser = modality)]
    modality: Vec<String>,
    /// Our AE title that the study is sent to [default: the route's]
    #[arg(long, value_name = "TITLE")]
    called: Option<AeTitle>,
}

fn pipeline(name: &str) -> Result<Pipeline, String> {
    Pipeline::from_name(name).ok_or_else(|| format!("there is no pipeline `{name}`"))
}

/// A Modality (0008,0060): VR CS, at most 16 characters (PS3.5 section 6.2).
fn modality(text: &str) -> Result<String, String> {
    let good = (1..=16).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_' || b == b' ');
    if good { Ok(text.to_owned()) } else { Err("expected a DICOM modality in capitals, such as DX".to_owned()) }
}

/// A rule as an inline table of a site file.
fn rule(text: &str) -> Result<ResultRule, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        rule: ResultRule,
    }
    let read = toml::from_str::<Line>(&format!("rule = {text}"));
    read.map(|line| line.rule).map_err(|error| error.message().to_owned())
}

impl From<Add> for Route {
    fn from(add: Add) -> Self {
        Self {
            name: add.name,
            order: add.order,
            enabled: !add.disabled,
            called_ae_title: add.called_ae_title,
            calling_ae_titles: add.calling_ae_titles,
            modalities: add.modalities,
            pipeline: add.pipeline,
            bundle: add.bundle,
            priority: RunPriority::from_name(&add.priority).unwrap_or_default(),
            quiet_seconds: add.quiet_seconds,
            max_wait_seconds: add.max_wait_seconds,
            released_quiet_seconds: add.released_quiet_seconds,
            lost_quiet_seconds: add.lost_quiet_seconds,
            required: add.required,
            late_images: if add.late_images == IGNORE { LateImages::Ignore } else { LateImages::NewRevision },
            late_images_within_seconds: add.late_images_within_seconds,
            destinations: add.destinations,
            rules: add.rule,
            trial: None,
        }
    }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            let keeps_rules = add.rule.is_empty() && !add.no_rules;
            let mut route = Route::from(*add);
            let known = site::load(global).await?.routes.into_iter().find(|known| known.name == route.name);
            if let Some(known) = known {
                route.trial = known.trial;
                if keeps_rules {
                    route.rules = known.rules;
                }
            }
            site::check_bundles(&global.load()?, std::slice::from_ref(&route))?;
            site::change(global, move |site| {
                site::upsert(&mut site.routes, route, |route| &route.name);
                Ok(())
            })
            .await
        }
        Action::List(options) => options.print(&site::load(global).await?.routes, table),
        Action::Remove { name } => {
            site::change(global, move |site| {
                site::remove(site, "route", &name, |site| &mut site.routes, |route| &route.name)
            })
            .await
        }
        Action::Test(options) => print(&test(&site::load(global).await?, &options)?),
        Action::Trial(options) => trial::begin(global, options).await,
        Action::Compare(options) => trial::compare(global, &options).await,
        Action::Promote(options) => trial::promote(global, &options).await,
        Action::Rollback(options) => trial::roll_back(global, &options).await,
        Action::History(options) => trial::history(global, &options).await,
    }
}

fn table(routes: &[Route]) -> String {
    let mut table = Table::new(&[
        "ORDER",
        "NAME",
        "ENABLED",
        "CALLED",
        "FROM",
        "MODALITIES",
        "PIPELINE",
        "BUNDLE",
        "QUIET",
        "MAX WAIT",
        "DESTINATIONS",
    ]);
    for route in routes {
        let from: Vec<&str> = route.calling_ae_titles.iter().map(AeTitle::as_str).collect();
        table.row([
            route.order.to_string(),
            route.name.clone(),
            yes_no(route.enabled),
            route.called_ae_title.to_string(),
            if from.is_empty() { "any".to_owned() } else { from.join(",") },
            route.modalities.join(","),
            route.pipeline.name().to_owned(),
            bundles(route),
            format!("{} s", route.quiet_seconds),
            format!("{} s", route.max_wait_seconds),
            route.destinations.join(","),
        ]);
    }
    table.render("no routes; `hilum route add --help` says how to add one")
}

/// `own`, or `own + new (shadow, 10 %)`.
fn bundles(route: &Route) -> String {
    match &route.trial {
        None => route.bundle.clone(),
        Some(trial) => {
            format!("{} + {} ({}, {} %)", route.bundle, trial.bundle, trial.mode.name(), trial.share_percent)
        }
    }
}

/// What would happen to a study, decided by the very function that decides for real ones.
fn test(site: &SiteConfig, options: &Test) -> anyhow::Result<String> {
    let Test { name, calling, modality, called } = options;
    let Some(route) = site.routes.iter().find(|route| &route.name == name) else {
        let known: Vec<String> = site.routes.iter().map(|route| format!("`{}`", route.name)).collect();
        anyhow::bail!(site::unknown("route", name, &known));
    };
    let sent = StudyToRoute {
        local_ae_title: called.as_ref().unwrap_or(&route.called_ae_title).as_str(),
        calling_ae_title: calling.as_str(),
        modalities: modality,
    };
    let study = format!("a study with {} from `{calling}` to `{}`", modality.join(", "), sent.local_ae_title);
    match choose_route(site, &sent) {
        Ok(taken) if taken.name == *name => {
            let destinations = if route.destinations.is_empty() {
                "the results stay here".to_owned()
            } else {
                format!("the results go to {}", route.destinations.join(", "))
            };
            let rules = match route.rules.len() {
                0 => String::new(),
                n => format!("; {n} rule(s) over results may add destinations or hurry"),
            };
            let required = route.required.as_ref().map(|required| format!(" when {required},")).unwrap_or_default();
            Ok(format!(
                "route `{name}` takes {study}: it is complete{required} after {} s of quiet ({} s at the latest), bundle `{}` analyses it, {destinations}{rules}{}",
                route.released_quiet_seconds(),
                route.max_wait_seconds,
                route.bundle,
                route.trial.as_ref().map(|trial| format!("; {}", describe_trial(trial))).unwrap_or_default()
            ))
        }
        _ if !route.enabled => anyhow::bail!("route `{name}` does not take {study}: it is disabled"),
        Ok(other) => anyhow::bail!(
            "route `{name}` does not take {study}: route `{}` takes it (order {}, this one has {})",
            other.name,
            other.order,
            route.order
        ),
        Err(reason) => anyhow::bail!("route `{name}` does not take {study}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::site, *};

    fn asked(calling: &str, modality: &str) -> Test {
        Test {
            name: "chest".to_owned(),
            calling: AeTitle::new(calling).unwrap(),
            modality: vec![modality.to_owned()],
            called: None,
        }
    }

    #[test]
    fn the_table_of_routes() {
        insta::assert_snapshot!(table(&site().routes), @"
        ORDER  NAME   ENABLED  CALLED  FROM       MODALITIES  PIPELINE          BUNDLE         QUIET  MAX WAIT  DESTINATIONS
        10     chest  yes      HILUM   DX_ROOM_1  CR,DX       chest_radiograph  cxr-untrained  20 s   600 s     pacs
        ");
    }

    #[test]
    fn a_route_says_whether_it_takes_a_study_and_why_not() {
        let mut site = site();
        insta::assert_snapshot!(test(&site, &asked("DX_ROOM_1", "DX")).unwrap(), @"route `chest` takes a study with DX from `DX_ROOM_1` to `HILUM`: it is complete after 20 s of quiet (600 s at the latest), bundle `cxr-untrained` analyses it, the results go to pacs");
        insta::assert_snapshot!(test(&site, &asked("DX_ROOM_1", "CT")).unwrap_err(), @"route `chest` does not take a study with CT from `DX_ROOM_1` to `HILUM`: no enabled route of local AE `HILUM` takes a study with CT; its pipeline does not exist or no route names it");
        insta::assert_snapshot!(test(&site, &asked("STRANGER", "DX")).unwrap_err(), @"route `chest` does not take a study with DX from `STRANGER` to `HILUM`: no enabled route of local AE `HILUM` takes studies from `STRANGER`");
        let earlier = Route { name: "first".to_owned(), order: 1, ..site.routes[0].clone() };
        site.routes.push(earlier);
        insta::assert_snapshot!(test(&site, &asked("DX_ROOM_1", "DX")).unwrap_err(), @"route `chest` does not take a study with DX from `DX_ROOM_1` to `HILUM`: route `first` takes it (order 1, this one has 10)");
        site.routes[0].enabled = false;
        insta::assert_snapshot!(test(&site, &asked("DX_ROOM_1", "DX")).unwrap_err(), @"route `chest` does not take a study with DX from `DX_ROOM_1` to `HILUM`: it is disabled");
    }

    #[test]
    fn rules_are_written_as_in_a_site_file() {
        let read = rule(r#"{ when = "score", at_least = 0.8, destinations = ["second"], priority = "high" }"#).unwrap();
        assert_eq!((read.at_least, read.destinations.as_slice()), (Some(0.8), ["second".to_owned()].as_slice()));
        assert!(rule(r#"{ when = "mood" }"#).unwrap_err().contains("mood"));
        assert!(rule("score").is_err());
    }

    #[test]
    fn modalities_are_code_strings() {
        assert!(modality("DX").is_ok());
        assert!(modality("dx").is_err());
        assert!(modality("").is_err());
    }
}
