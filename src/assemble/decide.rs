//! The decisions, without clock and database.

use std::time::Duration;

use serde_json::json;
use time::OffsetDateTime;

use crate::{
    db::workup::{AssociationFacts, CommitmentFacts, Evidence, Facts, SourceAnswer, Waiting},
    types::{Requirement, Route, SiteConfig},
};

/// Studies of a sender from which its pauses count as known.
const KNOWN_STUDIES: usize = 20;
/// Shortest time between two questions to the source.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Whether a study is complete.
#[derive(Debug, Clone, PartialEq)]
pub enum Completeness {
    /// Go on, because of this.
    Complete(Evidence),
    /// Look again later.
    Wait(Waiting),
    /// It is quiet; ask the sender how many instances the study has, then decide again.
    AskSource,
}

/// What a route asks of completeness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Silence that completes a study of whose associations too little is known.
    pub quiet: Duration,
    /// Silence that completes a study whose associations were all released.
    pub released_quiet: Duration,
    /// Silence that completes a study one of whose associations was lost; the longest that known senders get.
    pub lost_quiet: Duration,
    /// Age of the first object at which it is complete at the latest.
    pub maximum_wait: Duration,
    /// What must be there before.
    pub required: Option<&'a Requirement>,
    /// Ask the sender for the number of instances before.
    pub count_at_source: bool,
}

impl<'a> Rules<'a> {
    /// Those of a route.
    #[must_use]
    pub fn of(route: &'a Route, count_at_source: bool) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            quiet: seconds(route.quiet_seconds),
            released_quiet: seconds(route.released_quiet_seconds()),
            lost_quiet: seconds(route.lost_quiet_seconds()),
            maximum_wait: seconds(route.max_wait_seconds),
            required: route.required.as_ref(),
            count_at_source,
        }
    }

    /// For studies that no route takes.
    #[must_use]
    pub const fn without_route() -> Self {
        let quiet = Duration::from_secs(10);
        Self {
            quiet,
            released_quiet: quiet,
            lost_quiet: quiet,
            maximum_wait: Duration::from_mins(10),
            required: None,
            count_at_source: false,
        }
    }
}

/// Decides by the strongest evidence that there is: a person's word, age, a Storage Commitment request, the requirement
/// of the route, silence after the associations' ends, the sender's own count.
#[must_use]
pub fn completeness(facts: &Facts, rules: &Rules<'_>) -> Completeness {
    let latest = facts.first_object_at + rules.maximum_wait;
    let unmet = rules.required.map(|required| required.unmet(&facts.series)).unwrap_or_default();
    if let Some(forced_by) = &facts.forced_by {
        return complete(facts, "forced", format!("{forced_by} wants it complete, with {}", here(facts)), json!({}));
    }
    if facts.now >= latest {
        return complete(facts, "maximum_wait", too_old(facts, rules, &unmet), json!({ "unmet": unmet }));
    }
    let wait = |until: OffsetDateTime, kind, words: String| {
        Completeness::Wait(Waiting { until: until.min(latest), kind, words })
    };
    if let Some(commitment) = facts.commitment.as_ref().filter(|commitment| commitment.stored < commitment.listed) {
        let CommitmentFacts { listed, stored, .. } = commitment;
        let words = format!("waiting: the sender's commitment request lists {listed} instance(s), {stored} are here");
        return wait(latest, Some("commitment"), words);
    }
    let committed = facts.commitment.as_ref().filter(|commitment| covers_all(commitment, &facts.associations));
    let silence = silence(facts, rules);
    if committed.is_none() {
        let open = open_associations(facts).count();
        if open > 0 {
            // The end of the association brings the next look; this is the one in case its end is never told.
            let words = format!("waiting: {open} association(s) that stored to it are open");
            return wait(facts.now + rules.quiet, None, words);
        }
        let quiet_until = facts.last_object_at + silence.length;
        if facts.now < quiet_until {
            let kind = (silence.kind == "lost").then_some("lost");
            return wait(quiet_until, kind, format!("waiting: {}", silence.words));
        }
    }
    if !unmet.is_empty() {
        let words = format!("waiting: with {} the route still requires {}", here(facts), unmet.join(" and "));
        return wait(latest, Some("required"), words);
    }
    if let Some(CommitmentFacts { listed, requested_at, .. }) = committed {
        let words = format!("all {listed} instance(s) of the sender's commitment request are here");
        let data = json!({ "listed": listed, "requested_at": requested_at.unix_timestamp() });
        return complete(facts, "commitment", words, data);
    }
    if rules.count_at_source {
        return by_count(facts, rules, &silence, latest);
    }
    complete(facts, silence.kind, format!("{}, {}", here(facts), silence.words), json!({}))
}

/// What the sender's own count says of a study that has been quiet for long enough.
fn by_count(facts: &Facts, rules: &Rules<'_>, silence: &Silence, latest: OffsetDateTime) -> Completeness {
    let pause = rules.quiet.max(ASK_AGAIN);
    let fresh = |answer: &&SourceAnswer| answer.asked_at >= facts.last_object_at && facts.now < answer.asked_at + pause;
    let Some(SourceAnswer { asked_at, outcome }) = facts.source.as_ref().filter(fresh) else {
        return Completeness::AskSource;
    };
    let (stored, sender) = (facts.object_count(), &facts.calling_ae_title);
    match outcome {
        Ok(count) if stored < *count => Completeness::Wait(Waiting {
            until: (*asked_at + pause).min(latest),
            kind: Some("source_count"),
            words: format!("waiting: `{sender}` has {count} instance(s) of the study, {stored} are here"),
        }),
        Ok(count) => {
            let words = format!("{}, `{sender}` has {count} instance(s) of the study", here(facts));
            complete(facts, "source_count", words, json!({ "source_count": count }))
        }
        Err(reason) => {
            let words = format!(
                "{}, {}; `{sender}` could not be asked how many instances it has: {reason}",
                here(facts),
                silence.words
            );
            complete(facts, silence.kind, words, json!({ "source_error": reason }))
        }
    }
}

fn complete(facts: &Facts, kind: &'static str, words: String, mut data: serde_json::Value) -> Completeness {
    if let Some(data) = data.as_object_mut() {
        data.insert("objects".to_owned(), facts.object_count().into());
        data.insert("series".to_owned(), facts.series.len().into());
        data.insert("associations".to_owned(), facts.associations.len().into());
    }
    Completeness::Complete(Evidence { kind, words, data })
}

fn here(facts: &Facts) -> String {
    format!("{} object(s)", facts.object_count())
}

fn too_old(facts: &Facts, rules: &Rules<'_>, unmet: &[String]) -> String {
    let seconds = rules.maximum_wait.as_secs();
    let mut words = vec![here(facts), format!("the first is older than max_wait_seconds = {seconds}")];
    let open = open_associations(facts).count();
    if open > 0 {
        words.push(format!("with {open} association(s) still open"));
    }
    if !unmet.is_empty() {
        words.push(format!("without the required {}", unmet.join(" and ")));
    }
    if let Some(CommitmentFacts { listed, stored, .. }) = facts.commitment.as_ref().filter(|c| c.stored < c.listed) {
        words.push(format!("with {stored} of the {listed} instance(s) of the sender's commitment request"));
    }
    if let Some(SourceAnswer { outcome: Ok(count), .. }) = &facts.source
        && facts.object_count() < *count
    {
        words.push(format!("while `{}` had {count}", facts.calling_ae_title));
    }
    words.join(", ")
}

/// A request that names all that is here, while nobody else is still sending.
fn covers_all(commitment: &CommitmentFacts, associations: &[AssociationFacts]) -> bool {
    commitment.stored >= commitment.listed
        && commitment.unlisted == 0
        && associations.iter().all(|one| !is_open(one) || one.id == commitment.association_id)
}

fn is_open(association: &AssociationFacts) -> bool {
    association.started_at.is_some() && association.ended_at.is_none()
}

fn open_associations(facts: &Facts) -> impl Iterator<Item = &AssociationFacts> {
    facts.associations.iter().filter(|association| is_open(association))
}

/// How long a study has to be quiet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Silence {
    length: Duration,
    kind: &'static str,
    words: String,
}

fn silence(facts: &Facts, rules: &Rules<'_>) -> Silence {
    let named = |length: Duration, kind, before: &str, key: &str| Silence {
        length,
        kind,
        words: format!("{before}nothing new for {key} = {}", length.as_secs()),
    };
    let lost = facts.associations.iter().filter(|one| is_lost(one, &facts.associations)).count();
    if lost > 0 {
        let before = format!("{lost} association(s) lost and not made again, ");
        return named(rules.lost_quiet, "lost", &before, "lost_quiet_seconds");
    }
    let all_known = facts.associations.iter().all(|one| one.started_at.is_some());
    if facts.associations.is_empty() || !all_known {
        return named(rules.quiet, "quiet", "no open association, ", "quiet_seconds");
    }
    match needed_by(&facts.longest_gap_seconds).filter(|needed| *needed > rules.released_quiet) {
        Some(needed) => {
            let length = needed.min(rules.lost_quiet);
            let words = format!(
                "every association released, nothing new for {} s, which `{}` needs by its last {} studies",
                length.as_secs(),
                facts.calling_ae_title,
                facts.longest_gap_seconds.len()
            );
            Silence { length, kind: "learned", words }
        }
        None if rules.released_quiet == rules.quiet => {
            named(rules.quiet, "released", "every association released, ", "quiet_seconds")
        }
        None => named(rules.released_quiet, "released", "every association released, ", "released_quiet_seconds"),
    }
}

/// Ended otherwise than by release, and its sender has not come again and been released since.
fn is_lost(association: &AssociationFacts, all: &[AssociationFacts]) -> bool {
    let Some(ended_at) = association.ended_at else { return false };
    let released = |one: &AssociationFacts| one.end_kind.as_deref() == Some("released");
    let came_again = |one: &AssociationFacts| {
        released(one)
            && one.calling_ae_title == association.calling_ae_title
            && one.started_at.is_some_and(|started_at| started_at >= ended_at)
    };
    !released(association) && !all.iter().any(came_again)
}

/// The silence that a sender's studies needed: twice the 95th percentile of their longest pauses and a second. `None`
/// while too few are known.
fn needed_by(longest_gap_seconds: &[f64]) -> Option<Duration> {
    if longest_gap_seconds.len() < KNOWN_STUDIES {
        return None;
    }
    let mut gaps = longest_gap_seconds.to_vec();
    gaps.sort_by(f64::total_cmp);
    let percentile = *gaps.get((gaps.len() * 95).div_ceil(100) - 1)?;
    Duration::try_from_secs_f64((percentile * 2.0 + 1.0).ceil()).ok()
}

/// What a route is chosen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyToRoute<'a> {
    /// Our AE title that the study was sent to.
    pub local_ae_title: &'a str,
    /// Who sent it.
    pub calling_ae_title: &'a str,
    /// Distinct modalities of its objects.
    pub modalities: &'a [String],
}

/// Why no route takes a study, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotRouted(pub String);

/// The first enabled route, by `order`, whose titles and modalities fit.
pub fn choose_route<'a>(site: &'a SiteConfig, study: &StudyToRoute<'_>) -> Result<&'a Route, NotRouted> {
    let mut routes: Vec<&Route> = site.routes.iter().filter(|route| route.enabled).collect();
    routes.sort_by(|a, b| (a.order, &a.name).cmp(&(b.order, &b.name)));
    let called: Vec<&Route> =
        routes.into_iter().filter(|route| route.called_ae_title.as_str() == study.local_ae_title).collect();
    if called.is_empty() {
        return Err(NotRouted(format!("no enabled route listens to local AE `{}`", study.local_ae_title)));
    }
    let sender_fits = |route: &&&Route| {
        route.calling_ae_titles.is_empty()
            || route.calling_ae_titles.iter().any(|title| title.as_str() == study.calling_ae_title)
    };
    let from_sender: Vec<&Route> = called.iter().filter(sender_fits).copied().collect();
    if from_sender.is_empty() {
        return Err(NotRouted(format!(
            "no enabled route of local AE `{}` takes studies from `{}`",
            study.local_ae_title, study.calling_ae_title
        )));
    }
    let modality_fits = |route: &&&Route| route.modalities.iter().any(|modality| study.modalities.contains(modality));
    from_sender.iter().find(modality_fits).copied().ok_or_else(|| {
        let modalities =
            if study.modalities.is_empty() { "no modality".to_owned() } else { study.modalities.join(", ") };
        NotRouted(format!(
            "no enabled route of local AE `{}` takes a study with {modalities}; its pipeline does not exist or no route names it",
            study.local_ae_title
        ))
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::types::{AeTitle, LateImages, Pipeline, SeriesFacts};

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000 + seconds).unwrap()
    }

    /// An association from second `from` to second `to`, ended as `end`; `open` does not end.
    fn association(id: u128, from: i64, to: i64, end: &str) -> AssociationFacts {
        let ended = end != "open";
        AssociationFacts {
            id: Uuid::from_u128(id),
            calling_ae_title: "DX01".into(),
            started_at: Some(at(from)),
            ended_at: ended.then(|| at(to)),
            end_kind: ended.then(|| end.to_owned()),
        }
    }

    fn facts(last: i64, now: i64, associations: Vec<AssociationFacts>) -> Facts {
        Facts {
            id: Uuid::nil(),
            study_instance_uid: "1.2".into(),
            local_ae_title: "HILUM".into(),
            calling_ae_title: "DX01".into(),
            state: "receiving".into(),
            revision: 1,
            first_object_at: at(0),
            last_object_at: at(last),
            series: vec![SeriesFacts { modality: Some("DX".into()), instances: 2, ..SeriesFacts::default() }],
            associations,
            commitment: None,
            source: None,
            longest_gap_seconds: Vec::new(),
            forced_by: None,
            waiting_kind: None,
            now: at(now),
        }
    }

    fn rules() -> Rules<'static> {
        Rules {
            quiet: Duration::from_secs(10),
            released_quiet: Duration::from_secs(3),
            lost_quiet: Duration::from_secs(30),
            maximum_wait: Duration::from_mins(1),
            required: None,
            count_at_source: false,
        }
    }

    #[track_caller]
    fn assert_complete(facts: &Facts, rules: &Rules<'_>, kind: &str) -> String {
        match completeness(facts, rules) {
            Completeness::Complete(evidence) => {
                assert_eq!(evidence.kind, kind, "{}", evidence.words);
                evidence.words
            }
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_waits(facts: &Facts, rules: &Rules<'_>, until: i64, kind: Option<&str>) -> String {
        match completeness(facts, rules) {
            Completeness::Wait(waiting) => {
                assert_eq!((waiting.until, waiting.kind), (at(until), kind), "{}", waiting.words);
                waiting.words
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_released_study_needs_the_shorter_silence() {
        let released = || vec![association(1, 0, 5, "released")];
        assert_waits(&facts(5, 7, released()), &rules(), 8, None);
        let words = assert_complete(&facts(5, 8, released()), &rules(), "released");
        assert_eq!(words, "2 object(s), every association released, nothing new for released_quiet_seconds = 3");
        let same = Rules { released_quiet: rules().quiet, ..rules() };
        let words = assert_complete(&facts(5, 15, released()), &same, "released");
        assert!(words.ends_with("for quiet_seconds = 10"), "{words}");
    }

    #[test]
    fn open_associations_are_waited_for() {
        let open = || vec![association(1, 0, 5, "released"), association(2, 1, 0, "open")];
        assert_waits(&facts(5, 20, open()), &rules(), 30, None);
        assert_waits(&facts(5, 55, open()), &rules(), 60, None);
        let words = assert_complete(&facts(59, 60, open()), &rules(), "maximum_wait");
        assert!(words.contains("1 association(s) still open"), "{words}");
    }

    #[rstest::rstest]
    #[case::aborted("aborted")]
    #[case::connection_lost("connection_lost")]
    #[case::the_node_was_stopped("shut_down")]
    #[case::the_node_was_killed("restart")]
    fn a_lost_association_is_waited_for_longer(#[case] end: &str) {
        let lost = || vec![association(1, 0, 5, end)];
        let words = assert_waits(&facts(5, 20, lost()), &rules(), 35, Some("lost"));
        assert!(words.contains("1 association(s) lost and not made again"), "{words}");
        assert_complete(&facts(5, 35, lost()), &rules(), "lost");
        // It came again, and was released.
        let again = vec![association(1, 0, 5, end), association(2, 8, 12, "released")];
        assert_complete(&facts(12, 15, again), &rules(), "released");
        // Another one that had begun before says nothing about the lost one.
        let beside = vec![association(1, 0, 5, end), association(2, 3, 12, "released")];
        assert_waits(&facts(12, 15, beside), &rules(), 42, Some("lost"));
        // Nor does another sender's.
        let mut other = association(2, 8, 12, "released");
        other.calling_ae_title = "CT01".into();
        assert_waits(&facts(12, 15, vec![association(1, 0, 5, end), other]), &rules(), 42, Some("lost"));
    }

    #[test]
    fn associations_that_no_row_tells_of_need_the_usual_silence() {
        let mut unknown = association(1, 0, 5, "open");
        unknown.started_at = None;
        assert_waits(&facts(5, 14, vec![unknown.clone()]), &rules(), 15, None);
        assert_complete(&facts(5, 15, vec![unknown]), &rules(), "quiet");
        assert_complete(&facts(5, 15, Vec::new()), &rules(), "quiet");
    }

    #[rstest::rstest]
    #[case::too_few_studies(19, 8.0, 3, "released")]
    #[case::quick(20, 0.0, 3, "released")]
    #[case::pauses(20, 4.2, 10, "learned")]
    #[case::pauses_for_long(200, 50.0, 30, "learned")]
    fn the_silence_adapts_to_the_sender(
        #[case] studies: usize,
        #[case] gap: f64,
        #[case] seconds: i64,
        #[case] kind: &str,
    ) {
        let mut facts = facts(5, 5 + seconds, vec![association(1, 0, 5, "released")]);
        facts.longest_gap_seconds = vec![gap; studies];
        let words = assert_complete(&facts, &rules(), kind);
        assert_eq!(
            words.contains(&format!("`DX01` needs by its last {studies} studies")),
            kind == "learned",
            "{words}"
        );
        facts.now = at(4 + seconds);
        assert_waits(&facts, &rules(), 5 + seconds, None);
    }

    #[test]
    fn one_strange_study_in_twenty_teaches_nothing() {
        let mut gaps = vec![1.0; 19];
        gaps.insert(7, 10_000.0);
        assert_eq!(needed_by(&gaps), Some(Duration::from_secs(3)));
        gaps.push(10_000.0);
        gaps.push(10_000.0);
        assert_eq!(needed_by(&gaps), Some(Duration::from_secs(20_001)));
        assert_eq!(needed_by(&[f64::INFINITY; 20]), None);
    }

    fn commitment(listed: i64, stored: i64, unlisted: i64) -> CommitmentFacts {
        CommitmentFacts { requested_at: at(6), association_id: Uuid::from_u128(1), listed, stored, unlisted }
    }

    #[test]
    fn a_commitment_request_completes_at_once_or_is_waited_for() {
        let mut facts = facts(5, 6, vec![association(1, 0, 0, "open")]);
        facts.commitment = Some(commitment(2, 2, 0));
        let words = assert_complete(&facts, &rules(), "commitment");
        assert_eq!(words, "all 2 instance(s) of the sender's commitment request are here");
        // Another association is still sending.
        facts.associations.push(association(2, 3, 0, "open"));
        assert_waits(&facts, &rules(), 16, None);
        facts.associations.pop();
        // It does not list all that came.
        facts.commitment = Some(commitment(1, 1, 1));
        assert_waits(&facts, &rules(), 16, None);
        // Something that it lists is missing: silence does not count.
        facts.commitment = Some(commitment(3, 2, 0));
        facts.associations = vec![association(1, 0, 6, "released")];
        facts.now = at(50);
        let words = assert_waits(&facts, &rules(), 60, Some("commitment"));
        assert!(words.contains("lists 3 instance(s), 2 are here"), "{words}");
        facts.now = at(60);
        let words = assert_complete(&facts, &rules(), "maximum_wait");
        assert!(words.contains("2 of the 3 instance(s)"), "{words}");
    }

    #[test]
    fn what_the_route_requires_is_waited_for() {
        let required = Requirement::parse("instances >= 3 and modality = \"DX\"").unwrap();
        let rules = Rules { required: Some(&required), ..rules() };
        let mut facts = facts(5, 20, vec![association(1, 0, 5, "released")]);
        let words = assert_waits(&facts, &rules, 60, Some("required"));
        assert_eq!(words, "waiting: with 2 object(s) the route still requires instances >= 3");
        facts.commitment = Some(commitment(2, 2, 0));
        assert_waits(&facts, &rules, 60, Some("required"));
        facts.commitment = None;
        facts.series[0].instances = 3;
        assert_complete(&facts, &rules, "released");
        facts.series[0].instances = 2;
        facts.now = at(61);
        let words = assert_complete(&facts, &rules, "maximum_wait");
        assert!(words.contains("without the required instances >= 3"), "{words}");
    }

    fn answer(asked: i64, outcome: Result<u64, &str>) -> SourceAnswer {
        SourceAnswer { asked_at: at(asked), outcome: outcome.map_err(str::to_owned) }
    }

    #[test]
    fn the_sender_is_asked_when_it_is_quiet() {
        let rules = Rules { count_at_source: true, ..rules() };
        let mut facts = facts(5, 7, vec![association(1, 0, 5, "released")]);
        assert_waits(&facts, &rules, 8, None);
        facts.now = at(8);
        assert_eq!(completeness(&facts, &rules), Completeness::AskSource);
        facts.source = Some(answer(8, Ok(3)));
        let words = assert_waits(&facts, &rules, 18, Some("source_count"));
        assert_eq!(words, "waiting: `DX01` has 3 instance(s) of the study, 2 are here");
        facts.now = at(18);
        assert_eq!(completeness(&facts, &rules), Completeness::AskSource, "the answer is old");
        facts.source = Some(answer(18, Ok(2)));
        let words = assert_complete(&facts, &rules, "source_count");
        assert_eq!(words, "2 object(s), `DX01` has 2 instance(s) of the study");
        facts.source = Some(answer(4, Ok(2)));
        assert_eq!(completeness(&facts, &rules), Completeness::AskSource, "more came after the answer");
        facts.source = Some(answer(50, Ok(9)));
        facts.now = at(60);
        let words = assert_complete(&facts, &rules, "maximum_wait");
        assert!(words.contains("while `DX01` had 9"), "{words}");
    }

    #[test]
    fn a_sender_that_cannot_be_asked_is_judged_by_silence_and_that_is_said() {
        let rules = Rules { count_at_source: true, ..rules() };
        let mut facts = facts(5, 9, vec![association(1, 0, 5, "released")]);
        facts.source = Some(answer(9, Err("connection refused")));
        let words = assert_complete(&facts, &rules, "released");
        assert!(words.contains("released_quiet_seconds = 3"), "{words}");
        assert!(words.ends_with("`DX01` could not be asked how many instances it has: connection refused"), "{words}");
    }

    #[test]
    fn a_persons_word_is_enough() {
        let required = Requirement::parse("instances >= 300").unwrap();
        let rules = Rules { required: Some(&required), count_at_source: true, ..rules() };
        let mut facts = facts(5, 6, vec![association(1, 0, 0, "open")]);
        facts.commitment = Some(commitment(9, 2, 0));
        facts.forced_by = Some("user `root`".into());
        let words = assert_complete(&facts, &rules, "forced");
        assert_eq!(words, "user `root` wants it complete, with 2 object(s)");
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
            priority: crate::types::RunPriority::Routine,
            quiet_seconds: 10,
            max_wait_seconds: 60,
            released_quiet_seconds: Some(3),
            lost_quiet_seconds: None,
            required: None,
            late_images: LateImages::NewRevision,
            late_images_within_seconds: None,
            destinations: Vec::new(),
            rules: Vec::new(),
            trial: None,
        }
    }

    #[test]
    fn the_rules_are_the_routes() {
        assert_eq!(Rules::of(&route("chest", 1, &[], &["DX"]), false), rules());
    }

    fn study<'a>(local: &'a str, calling: &'a str, modalities: &'a [String]) -> StudyToRoute<'a> {
        StudyToRoute { local_ae_title: local, calling_ae_title: calling, modalities }
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
        assert_eq!(choose_route(&site, &study("HILUM", "DX01", &["DX".into()])).unwrap().name, "first");
    }

    #[test]
    fn a_study_without_a_route_is_told_why() {
        let site = SiteConfig { routes: vec![route("chest", 1, &["DX01"], &["DX"])], ..SiteConfig::default() };
        let reason = |site: &SiteConfig, local, calling, modality: &str| {
            choose_route(site, &study(local, calling, &[modality.to_owned()])).unwrap_err().0
        };
        assert!(reason(&site, "HILUM", "DX01", "CT").contains("a study with CT"));
        assert!(reason(&site, "HILUM", "X", "DX").contains("from `X`"));
        assert!(reason(&site, "Y", "DX01", "DX").contains("local AE `Y`"));
        let mut disabled = site.clone();
        disabled.routes[0].enabled = false;
        assert!(reason(&disabled, "HILUM", "DX01", "DX").contains("no enabled route"));
    }
}
