//! The decisions, without clock and database.

use std::time::Duration;

use time::OffsetDateTime;

use crate::{
    db::workup::Facts,
    types::{Route, SiteConfig},
};

/// Whether a study is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completeness {
    /// Go on, because of this.
    Complete {
        /// In words, kept with the workup.
        reason: String,
    },
    /// Look again then.
    WaitUntil(OffsetDateTime),
}

/// A study is complete when no open association has stored to it and nothing has come for `quiet`, or when its
/// first object is `maximum_wait` old.
#[must_use]
pub fn completeness(facts: &Facts, quiet: Duration, maximum_wait: Duration) -> Completeness {
    let at_the_latest = facts.first_object_at + maximum_wait;
    if facts.now >= at_the_latest {
        let reason = format!(
            "the first object is older than max_wait_seconds = {}, with {} association(s) still open",
            maximum_wait.as_secs(),
            facts.open_association_count
        );
        return Completeness::Complete { reason };
    }
    let quiet_until = facts.last_object_at + quiet;
    if facts.open_association_count > 0 {
        // The end of the association brings the next look; this is the one in case its end is never told.
        return Completeness::WaitUntil((facts.now + quiet).min(at_the_latest));
    }
    if facts.now < quiet_until {
        return Completeness::WaitUntil(quiet_until.min(at_the_latest));
    }
    let reason = format!(
        "{} object(s), no open association, nothing new for quiet_seconds = {}",
        facts.object_count,
        quiet.as_secs()
    );
    Completeness::Complete { reason }
}

/// Why no route takes a study, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRouted(pub String);

/// The first enabled route, by `order`, whose titles and modalities fit.
pub fn choose_route<'a>(site: &'a SiteConfig, facts: &Facts) -> Result<&'a Route, NotRouted> {
    let mut routes: Vec<&Route> = site.routes.iter().filter(|route| route.enabled).collect();
    routes.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
    let called: Vec<&Route> =
        routes.into_iter().filter(|route| route.called_ae_title.as_str() == facts.local_ae_title).collect();
    if called.is_empty() {
        return Err(NotRouted(format!("no enabled route listens to local AE `{}`", facts.local_ae_title)));
    }
    let sender_fits = |route: &&&Route| {
        route.calling_ae_titles.is_empty()
            || route.calling_ae_titles.iter().any(|title| title.as_str() == facts.calling_ae_title)
    };
    let from_sender: Vec<&Route> = called.iter().filter(sender_fits).copied().collect();
    if from_sender.is_empty() {
        return Err(NotRouted(format!(
            "no enabled route of local AE `{}` takes studies from `{}`",
            facts.local_ae_title, facts.calling_ae_title
        )));
    }
    let modality_fits = |route: &&&Route| route.modalities.iter().any(|modality| facts.modalities.contains(modality));
    from_sender.iter().find(modality_fits).copied().ok_or_else(|| {
        let modalities =
            if facts.modalities.is_empty() { "no modality".to_owned() } else { facts.modalities.join(", ") };
        NotRouted(format!(
            "no enabled route of local AE `{}` takes a study with {modalities}; its pipeline does not exist or no route names it",
            facts.local_ae_title
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AeTitle, Pipeline};

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000 + seconds).unwrap()
    }

    fn facts(first: i64, last: i64, now: i64, open: i64) -> Facts {
        Facts {
            id: uuid::Uuid::nil(),
            study_instance_uid: "1.2".into(),
            local_ae_title: "HILUM".into(),
            calling_ae_title: "DX01".into(),
            state: "receiving".into(),
            revision: 1,
            first_object_at: at(first),
            last_object_at: at(last),
            modalities: vec!["DX".into()],
            object_count: 2,
            open_association_count: open,
            now: at(now),
        }
    }

    #[rstest::rstest]
    #[case::quiet_and_closed(facts(0, 5, 15, 0), None)]
    #[case::not_quiet_yet(facts(0, 5, 14, 0), Some(15))]
    #[case::quiet_but_open(facts(0, 5, 20, 1), Some(30))]
    #[case::open_for_too_long(facts(0, 59, 60, 1), None)]
    #[case::never_later_than_the_maximum(facts(0, 55, 56, 0), Some(60))]
    fn a_study_is_complete_by_silence_or_age(#[case] facts: Facts, #[case] wait_until: Option<i64>) {
        let decision = completeness(&facts, Duration::from_secs(10), Duration::from_mins(1));
        match wait_until {
            Some(seconds) => assert_eq!(decision, Completeness::WaitUntil(at(seconds))),
            None => assert!(matches!(decision, Completeness::Complete { .. }), "{decision:?}"),
        }
    }

    fn route(name: &str, order: i32, calling: &[&str], modalities: &[&str]) -> Route {
        Route {
            name: name.into(),
            order,
            enabled: true,
            called_ae_title: AeTitle::new("HILUM").unwrap(),
            calling_ae_titles: calling.iter().map(|title| AeTitle::new(title).unwrap()).collect(),
            modalities: modalities.iter().map(|&modality| modality.to_owned()).collect(),
            pipeline: Pipeline::ChestRadiograph,
            bundle: "cxr".into(),
            quiet_seconds: 10,
            max_wait_seconds: 60,
            destinations: Vec::new(),
        }
    }

    #[test]
    fn the_first_fitting_route_by_order_takes_the_study() {
        let site = SiteConfig {
            routes: vec![
                route("later", 20, &[], &["DX"]),
                route("other-sender", 1, &["CT01"], &["DX"]),
                route("first", 10, &["DX01"], &["CR", "DX"]),
            ],
            ..SiteConfig::default()
        };
        assert_eq!(choose_route(&site, &facts(0, 0, 0, 0)).unwrap().name, "first");
    }

    #[test]
    fn a_study_without_a_route_is_told_why() {
        let mut facts = facts(0, 0, 0, 0);
        let site = SiteConfig { routes: vec![route("chest", 1, &["DX01"], &["DX"])], ..SiteConfig::default() };
        facts.modalities = vec!["CT".into()];
        assert!(choose_route(&site, &facts).unwrap_err().0.contains("a study with CT"));
        facts.calling_ae_title = "X".into();
        assert!(choose_route(&site, &facts).unwrap_err().0.contains("from `X`"));
        facts.local_ae_title = "Y".into();
        assert!(choose_route(&site, &facts).unwrap_err().0.contains("local AE `Y`"));
        let mut disabled = site.clone();
        disabled.routes[0].enabled = false;
        facts.local_ae_title = "HILUM".into();
        assert!(choose_route(&disabled, &facts).is_err());
    }
}
