//! `hilum doctor`: what is wrong with the node, its peers and what it refused, each with its remedy.

mod allow;
mod checks;
mod http;

use std::{fmt::Write as _, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::{
    Global,
    output::{count, print, print_json, time_json, time_text, visible},
    refusals, site,
    store::Store,
};
use crate::{
    config::Config,
    db::refusal::{self, Cause, Whose},
    types::SiteConfig,
};
use checks::Check;

/// Rows that one call looks at.
const MAX_ROWS: i64 = 2000;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only what concerns this peer, by its name here
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// Refusals of the last 30m, 6h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    since: Duration,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lets in what was refused, as its remedy says, and notes who did it
    Allow(allow::Options),
}

/// `30m`, `6h`, `7d`.
fn span(text: &str) -> Result<Duration, String> {
    let expected = || "expected a number with s, m, h or d, such as 6h".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok()).ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(expected()),
    };
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

/// Everything that the doctor found.
struct Findings {
    checks: Vec<Check>,
    causes: Vec<Cause>,
}

impl Findings {
    /// How many things somebody has to mend.
    fn problems(&self) -> usize {
        self.checks.iter().filter(|check| check.is_problem()).count()
            + self.causes.iter().filter(|cause| cause.is_open()).count()
    }
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    if let Some(Action::Allow(options)) = options.action {
        return allow::run(global, options).await;
    }
    let findings = examine(global, &options).await?;
    if options.json {
        print_json(&to_json(&findings))?;
    } else {
        print(&describe(&findings, options.since))?;
    }
    match findings.problems() {
        0 => Ok(()),
        problems => Err(anyhow::anyhow!("{} found, see above", count(problems, "problem"))),
    }
}

async fn examine(global: &Global, options: &Options) -> anyhow::Result<Findings> {
    let config = match global.load() {
        Ok(config) => config,
        Err(errors) => {
            return Ok(Findings { checks: vec![Check::problem("configuration", errors)], causes: Vec::new() });
        }
    };
    let mut checks = vec![Check::ok("configuration", "every key is known and in its range")];
    let store = match Store::open(&config).await {
        Ok(store) => store,
        Err(error) => {
            checks.push(checks::failed("postgres", &error));
            checks.extend(checks::without_postgres(&config).await);
            return Ok(Findings { checks, causes: Vec::new() });
        }
    };
    let examined = examine_with(&config, &store, options, &mut checks).await;
    store.close().await?;
    Ok(Findings { causes: examined?, checks })
}

async fn examine_with(
    config: &Config,
    store: &Store,
    options: &Options,
    checks: &mut Vec<Check>,
) -> anyhow::Result<Vec<Cause>> {
    let mut connection = store.db.acquire().await?;
    let site = crate::db::site::load(&mut connection).await?;
    let whose = whose(&site, options.peer.as_deref())?;
    let since = OffsetDateTime::now_utc() - options.since;
    let rows = refusal::list(&mut connection, since, &whose, MAX_ROWS).await?;
    drop(connection);
    checks.push(checks::clock(&store.db).await);
    if options.peer.is_none() {
        checks.extend(checks::without_postgres(config).await);
        checks.extend(checks::site(&site));
        checks.extend(checks::models(config, &site).await);
        checks.extend(checks::backlog(&store.db).await);
    }
    checks.extend(checks::peers(config, &site, options.peer.as_deref()).await);
    Ok(refusal::causes(rows))
}

/// Whose refusals the peer `name` stands for: its AE title, and its host where that is an address.
fn whose(site: &SiteConfig, name: Option<&str>) -> anyhow::Result<Whose> {
    let Some(name) = name else { return Ok(Whose::default()) };
    let Some(peer) = site.peers.iter().find(|peer| peer.name == name) else {
        let known: Vec<String> = site.peers.iter().map(|peer| format!("`{}`", peer.name)).collect();
        anyhow::bail!(site::unknown("peer", name, &known));
    };
    let address = peer.host.parse::<std::net::IpAddr>().ok();
    Ok(Whose {
        ae_titles: vec![peer.ae_title.to_string()],
        addresses: address.iter().map(ToString::to_string).collect(),
    })
}

fn describe(findings: &Findings, since: Duration) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for check in &findings.checks {
        let _ = writeln!(text, "{}", visible(&check.line()));
    }
    let hours = since.as_secs_f64() / 3600.0;
    let _ = match findings.causes.len() {
        0 => writeln!(text, "\nnothing was refused in the last {hours} h"),
        _ => writeln!(text, "\nrefused in the last {hours} h:"),
    };
    for cause in &findings.causes {
        if let Some(newest) = cause.newest() {
            describe_cause(&mut text, cause, newest);
        }
    }
    text
}

fn describe_cause(text: &mut String, cause: &Cause, newest: &refusal::RefusalRow) {
    let state = match (cause.is_open(), newest.mended) {
        (true, _) => "open",
        (false, true) => "mended",
        (false, false) => "harmless",
    };
    let from = match (newest.calling_ae_title.as_str(), newest.called_ae_title.as_str()) {
        ("", _) => newest.peer_address.clone(),
        (calling, called) => format!("`{calling}` at {} calling `{called}`", newest.peer_address),
    };
    let first_at = cause.first_at().unwrap_or(newest.first_at);
    let when = format!("{} to {}", time_text(first_at), time_text(newest.last_at));
    let lines = [
        format!("{:<8} {} {} × {} from {from}, {when}", state, newest.id, cause.count(), newest.kind),
        format!("         expected {}", newest.expected),
        format!("         received {}", newest.received),
        format!("         remedy   {}", newest.remedy),
    ];
    for line in lines {
        let _ = writeln!(text, "{}", visible(&line));
    }
    let others = cause.rows.len() - 1;
    if others > 0 {
        let more: Vec<&str> = cause.rows.iter().skip(1).take(4).map(|row| row.received.as_str()).collect();
        let _ = writeln!(
            text,
            "         {}: {}",
            visible(&format!("and {others} more like it")),
            visible(&more.join("; "))
        );
    }
}

fn to_json(findings: &Findings) -> serde_json::Value {
    let checks: Vec<_> = findings.checks.iter().map(Check::to_json).collect();
    let causes: Vec<_> = findings
        .causes
        .iter()
        .map(|cause| {
            json!({
                "open": cause.is_open(),
                "count": cause.count(),
                "first_at": cause.first_at().map(time_json),
                "refusals": cause.rows.iter().map(refusals::to_json).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "problems": findings.problems(), "checks": checks, "causes": causes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("6h"), Ok(Duration::from_hours(6)));
        assert_eq!(span("7d"), Ok(Duration::from_hours(7 * 24)));
        for bad in ["", "h", "5", "-1h", "1.5h", "99999999999d", "5ü"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn findings_read_as_they_are() {
        let row = refusals::tests::row();
        let other = refusal::RefusalRow { received: "b".into(), id: 11, count: 2, ..row.clone() };
        let mended = refusal::RefusalRow { mended: true, calling_ae_title: "CT01".into(), ..row.clone() };
        let findings = Findings {
            checks: vec![
                Check::ok("postgres", "answers"),
                Check::note("peer `dx`", "only calls us"),
                Check::problem("archive", "is full; make room"),
            ],
            causes: refusal::causes(vec![row, other, mended]),
        };
        assert_eq!(findings.problems(), 2);
        insta::assert_snapshot!(describe(&findings, Duration::from_hours(1)), @"
        ok       postgres: answers
        note     peer `dx`: only calls us
        problem  archive: is full; make room

        refused in the last 1 h:
        open     12 5 × association from `EVIL [2J` at 192.0.2.7 calling `HILUM`, 2026-09-21 14:08:20Z to 2026-09-21 14:13:20Z
                 expected a call from `DX_ROOM_1`
                 received a call from `EVIL`
                 remedy   run `hilum peer add NAME`
                 and 1 more like it: b
        mended   12 3 × association from `CT01` at 192.0.2.7 calling `HILUM`, 2026-09-21 14:08:20Z to 2026-09-21 14:13:20Z
                 expected a call from `DX_ROOM_1`
                 received a call from `EVIL`
                 remedy   run `hilum peer add NAME`
        ");
        let json = to_json(&findings);
        assert_eq!((json["problems"].as_u64(), json["causes"][0]["count"].as_i64()), (Some(2), Some(5)));
        assert_eq!(json["checks"][2]["state"], "problem");
    }
}
