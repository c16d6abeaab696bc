//! From a finished run to the objects that its destinations are owed: planned, rendered, made durable, and owed in one
//! transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use anyhow::Context as _;
use serde_json::json;
use time::OffsetDateTime;

use super::{
    pictures,
    worker::{Inner, WorkerSettings, sources_of},
};
use crate::{
    archive::{Archive, ArchiveError},
    db::{
        delivery, event, instance, result,
        run::{self, ClaimedRendering, FinishedRun, Rendered},
        site, workup,
    },
    imaging::{self, DecodeLimits, GuardLimits},
    jobs::{self, Job},
    report::{self, Owed, RenderOptions, RenderedObject, ResultSpec, SourceHeader},
    types::{
        BundleStatus, CtSlicePictures, DeliveryPriority, Predecessors, ReportClass, ResultProfile, ResultRule, Ruling,
        RunOutcome, RunRecord, SiteConfig, SourceImage, VoxelLabels,
    },
};

/// Who gets the results of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Recipients {
    /// Names of destinations, those of the route first.
    destinations: Vec<String>,
    /// Before all others that are due.
    urgent: bool,
    /// What the rules of the route said, for the timeline.
    rulings: Vec<String>,
}

/// The destinations of the route, but for a study that was not analysed only those that want to know; those that rules
/// add, whatever they want; and those that were `told_before`, in an earlier revision, and would take that for the last word.
fn recipients(
    record: &RunRecord,
    of_route: &[String],
    rules: &[ResultRule],
    told_before: &[String],
    site: &SiteConfig,
) -> Recipients {
    let wants = |name: &&String| {
        !matches!(record.outcome, RunOutcome::NotAnalysed(_))
            || site.destinations.iter().any(|of| &of.name == *name && of.send_not_analysed)
    };
    let destinations = of_route.iter().filter(wants).cloned().collect();
    let mut found = Recipients { destinations, urgent: false, rulings: Vec::new() };
    for (number, rule) in (1..).zip(rules) {
        match rule.ruling(record) {
            Ruling::No => {}
            Ruling::Withheld(words) => found.rulings.push(format!("rule {number}: {words}")),
            Ruling::Applies(why) => {
                let also = if rule.destinations.is_empty() {
                    String::new()
                } else {
                    format!(", also to {}", rule.destinations.join(", "))
                };
                // Nobody is hurried by weights that are not validated.
                let hurries = rule.priority == DeliveryPriority::High;
                let may_hurry = record.bundle.status == BundleStatus::Validated;
                let priority = if hurries && !may_hurry {
                    "priority high withheld, as the bundle is not validated".to_owned()
                } else {
                    format!("priority {}", rule.priority.name())
                };
                found.rulings.push(format!("rule {number}: {why}: {priority}{also}"));
                found.urgent |= hurries && may_hurry;
                for name in &rule.destinations {
                    if !found.destinations.contains(name) {
                        found.destinations.push(name.clone());
                    }
                }
            }
        }
    }
    for name in told_before {
        if !found.destinations.contains(name) && site.destinations.iter().any(|of| &of.name == name) {
            found.rulings.push(format!("also to {name}, which has the report of an earlier revision"));
            found.destinations.push(name.clone());
        }
    }
    found
}

/// What is rendered of a run that no destination gets, for the status page.
fn kept_here() -> ResultProfile {
    ResultProfile {
        report_classes: vec![ReportClass::Comprehensive],
        text_companion: false,
        ct_slices: CtSlicePictures::None,
        ..ResultProfile::default()
    }
}

/// A run with all that rendering needs, and what is owed of it.
struct Order {
    run: FinishedRun,
    received_at: HashMap<String, OffsetDateTime>,
    masks: Option<VoxelLabels>,
    recipients: Recipients,
    /// For each destination what it is owed; without destinations what is kept here.
    owed: Vec<Vec<Owed>>,
    /// No attempt comes after this one: what cannot be made is left out, so that it keeps no report back.
    is_last_attempt: bool,
    /// What was left out and why, for the timeline.
    left_out: Vec<String>,
}

impl Order {
    /// Every object once, however many destinations get it, in the order of sending; together those whose pixels are the
    /// same.
    fn specs(&self) -> Vec<Vec<ResultSpec>> {
        let mut seen = HashSet::new();
        let all = self.owed.iter().flatten().flat_map(|owed| &owed.alternatives);
        let mut specs: Vec<&ResultSpec> = all.filter(|spec| seen.insert(*spec)).collect();
        specs.sort_by_key(|spec| spec.send_order());
        let mut groups: Vec<Vec<ResultSpec>> = Vec::new();
        let mut group_of = HashMap::new();
        for spec in specs {
            let group = *group_of.entry(pictures::painted_as(spec)).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(spec.clone());
        }
        groups
    }

    /// Renders every object and makes it durable; the rows come later, in one transaction. What an attempt that fails or is
    /// killed leaves behind is written anew by the next, under the same names. Blocks.
    fn render(&mut self, archive: &Archive, settings: &WorkerSettings) -> anyhow::Result<Vec<Stored>> {
        let mut sources = headers(&self.run.record.outcome, archive)?;
        newest_last(&mut sources, &self.received_at);
        self.render_from(&sources, archive, &settings.render, settings.decode_limits)
    }

    fn render_from(
        &mut self,
        sources: &[Source],
        archive: &Archive,
        options: &RenderOptions,
        limits: DecodeLimits,
    ) -> anyhow::Result<Vec<Stored>> {
        let mut ordinals: BTreeMap<&str, usize> = BTreeMap::new();
        let mut stored = Vec::new();
        // Reports say what accompanies them, so that comes first.
        for are_reports in [false, true] {
            for group in
                self.specs().into_iter().filter(|group| group.iter().all(|spec| spec.is_report() == are_reports))
            {
                // Painted once, when the first of the group wants it.
                let mut painted = None;
                for spec in group {
                    let object = match render(&spec, self, sources, &mut painted, archive, options, limits) {
                        Ok(object) => object,
                        Err(error) if self.can_do_without(&spec, &error) => {
                            self.leave_out(&spec, &error);
                            continue;
                        }
                        Err(error) => return Err(error.context(spec.in_words())),
                    };
                    let preview = painted.as_ref().and_then(|(_, preview)| preview.as_deref());
                    let ordinal = ordinals.entry(object.kind.as_str()).or_default();
                    let new = store(archive, &self.run.record, &object, *ordinal, preview)?;
                    *ordinal += 1;
                    stored.push((spec, new));
                }
            }
        }
        Ok(stored)
    }

    fn can_do_without(&self, spec: &ResultSpec, error: &anyhow::Error) -> bool {
        self.is_last_attempt && !spec.is_report() && !is_out_of_resources(error)
    }

    /// Nobody is owed it any more, and no report refers to a segmentation that is not there.
    fn leave_out(&mut self, spec: &ResultSpec, error: &anyhow::Error) {
        let words = format!("{}: {error:#}", spec.in_words());
        tracing::error!(run_id = %self.run.record.run_id, words, "a result cannot be made: the others are sent without it");
        self.left_out.push(words);
        let is_segmentation = matches!(spec, ResultSpec::Segmentation(_));
        for of_destination in &mut self.owed {
            let before = of_destination.len();
            of_destination.retain(|owed| !owed.alternatives.contains(spec));
            if is_segmentation && of_destination.len() < before {
                for alternative in of_destination.iter_mut().flat_map(|owed| &mut owed.alternatives) {
                    if let ResultSpec::Report(form) | ResultSpec::TextCompanion(form) = alternative {
                        form.with_segmentation = false;
                    }
                }
            }
        }
    }
}

/// An object in the archive whose row is not written yet.
type Stored = (ResultSpec, result::NewResult);
type Source = (SourceImage, SourceHeader);

/// The disk is full: it is waited for.
fn is_out_of_resources(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ArchiveError>().is_some_and(ArchiveError::is_out_of_resources)
}

impl Inner {
    pub(super) async fn render(&self, claimed: &ClaimedRendering) -> anyhow::Result<()> {
        let Some(mut order) = self.order(claimed).await? else { return Ok(()) };
        let (archive, settings) = (self.archive.clone(), self.settings.clone());
        let started = Instant::now();
        let render = move || {
            let stored = order.render(&archive, &settings);
            (order, stored)
        };
        let (order, stored) = tokio::task::spawn_blocking(render).await?;
        match stored {
            Ok(stored) => self.owe(&order, stored, started).await,
            Err(error) => self.rendering_failed(claimed, error).await,
        }
    }

    /// What is to be rendered of a run, for whom; `None` when there is nothing to do.
    async fn order(&self, claimed: &ClaimedRendering) -> anyhow::Result<Option<Order>> {
        let run_id = claimed.id;
        let mut connection = self.db.acquire().await?;
        let to_render = run::to_render(&mut connection, run_id, &self.settings.installation).await?;
        let Some(mut run) = to_render else { return Ok(None) };
        let record = &mut run.record;
        record.started_at = record.started_at.to_offset((self.settings.machine_utc_offset)(record.started_at));
        let keys: Vec<String> = sources_of(&record.outcome).into_iter().map(|source| source.archive_key).collect();
        let received_at = instance::received_at(&mut connection, &keys).await?;
        let packed = run::masks(&mut connection, run_id).await?;
        let site = site::load(&mut connection).await?;
        let told_before = run::told_before(&mut connection, run.workup_id, run.record.revision).await?;
        let recipients = recipients(&run.record, &run.destinations, &run.rules, &told_before, &site);
        let mut profiles = Vec::new();
        for name in &recipients.destinations {
            let profile = site.destinations.iter().find(|of| &of.name == name).map(|of| of.results.clone());
            let predecessors = run::predecessors(&mut connection, run.workup_id, run.record.revision, name).await?;
            profiles.push((profile.unwrap_or_default(), predecessors));
        }
        if profiles.is_empty() {
            profiles.push((kept_here(), Predecessors::default()));
        }
        let unpack = move || packed.map(|packed| packed.unpack()).transpose();
        let masks = tokio::task::spawn_blocking(unpack).await??;
        let lungs = VoxelLabels::RIGHT_LUNG | VoxelLabels::LEFT_LUNG;
        let slices = masks.as_ref().map_or_else(Vec::new, |masks| masks.slices_with(lungs));
        let owed = profiles
            .iter()
            .map(|(profile, predecessors)| report::owed(&run.record, profile, &slices, predecessors))
            .collect();
        let is_last_attempt = claimed.render_attempts >= claimed.maximum_attempts;
        Ok(Some(Order { run, received_at, masks, recipients, owed, is_last_attempt, left_out: Vec::new() }))
    }

    /// Inserts the results and what is owed of them, if the run still answers its workup.
    async fn owe(&self, order: &Order, stored: Vec<Stored>, started: Instant) -> anyhow::Result<()> {
        let FinishedRun { workup_id, record, .. } = &order.run;
        let (run_id, n_results) = (record.run_id, stored.len());
        let mut tx = self.db.begin().await?;
        match run::rendered(&mut tx, run_id).await? {
            Rendered::Counts => {}
            Rendered::Already => {
                tracing::info!(%run_id, "another rendering of the run was first; it wrote the same files");
                return Ok(());
            }
            Rendered::Superseded => {
                run::supersede_earlier(&mut tx, *workup_id, record.revision + 1).await?;
                tx.commit().await.context("commit")?;
                self.drop_results(stored.into_iter().map(|(_, new)| new).collect()).await?;
                tracing::info!(%run_id, "the workup has a newer revision: results dropped");
                return Ok(());
            }
        }
        let mut results = HashMap::new();
        for (spec, new) in &stored {
            results.insert(spec, result::insert_or_existing(&mut tx, new).await?);
        }
        let Recipients { destinations, urgent, rulings } = &order.recipients;
        for (destination, owed) in destinations.iter().zip(&order.owed) {
            for (chain, owed) in owed.iter().enumerate() {
                for (rank, spec) in owed.alternatives.iter().enumerate() {
                    let result_id = *results.get(spec).context("a result that is owed was not rendered")?;
                    let new = delivery::NewDelivery {
                        result_id,
                        destination,
                        send_order: spec.send_order(),
                        chain: &chain.to_string(),
                        rank: i32::try_from(rank)?,
                        urgent: *urgent,
                    };
                    delivery::insert(&mut tx, &new).await?;
                }
            }
            jobs::queue(&mut tx, &self.db, &Job::Deliver(destination.clone()), None).await?;
        }
        for words in rulings {
            event::append(&mut tx, event::Subject::Run, run_id, "rule", words, json!({})).await?;
        }
        for words in &order.left_out {
            event::append(&mut tx, event::Subject::Run, run_id, "result_left_out", words, json!({})).await?;
        }
        workup::answer_if_done(&mut tx, *workup_id).await?;
        tx.commit().await.context("commit the results")?;
        tracing::info!(
            %run_id,
            study_instance_uid = %record.study_instance_uid,
            results = n_results,
            destinations = destinations.len(),
            milliseconds = started.elapsed().as_millis() as u64,
            "results rendered"
        );
        Ok(())
    }

    /// Removes the files of a rendering that does not count.
    async fn drop_results(&self, stored: Vec<result::NewResult>) -> anyhow::Result<()> {
        let archive = self.archive.clone();
        let remove = move || {
            let keys = stored.into_iter().flat_map(|new| [Some(new.archive_key), new.preview_key]);
            for key in keys.flatten() {
                if let Err(error) = archive.remove_result(&key) {
                    tracing::warn!(key, %error, "a result file that nothing refers to cannot be removed");
                }
            }
        };
        Ok(tokio::task::spawn_blocking(remove).await?)
    }

    /// A full disk is waited for; anything else ends in the parking place, so that nothing is rendered for ever.
    async fn rendering_failed(&self, claimed: &ClaimedRendering, error: anyhow::Error) -> anyhow::Result<()> {
        let waits = is_out_of_resources(&error);
        let mut tx = self.db.begin().await?;
        if waits {
            run::return_rendering(&mut tx, claimed).await?;
        } else if claimed.render_attempts >= claimed.maximum_attempts {
            let words = format!("{error:#}");
            run::park_rendering(&mut tx, claimed, "processing.failure", &words).await?;
            self.queue_answering(&mut tx, claimed.id).await?;
            tx.commit().await.context("commit the failure")?;
            tracing::error!(run_id = %claimed.id, words, "the results cannot be rendered: the run is parked");
            return Ok(());
        }
        tx.commit().await.context("commit the failure")?;
        Err(error.context(format!("render run {}", claimed.id)))
    }
}

/// The headers of the images that the record's results refer to.
fn headers(outcome: &RunOutcome, archive: &Archive) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut unreadable = Vec::new();
    for source in sources_of(outcome) {
        let bytes = archive.read(&source.archive_key)?;
        // The pipeline met the object already, or refused to: an unreadable header is left out here, unless the
        // report would have none at all.
        let guarded = imaging::check_part10(&bytes, &GuardLimits::default()).map_err(anyhow::Error::from);
        match guarded.and_then(|()| Ok(SourceHeader::from_part10(&bytes)?)) {
            Ok(header) => sources.push((source.clone(), header)),
            Err(error) => {
                tracing::warn!(sop_instance_uid = %source.sop_instance_uid, error = format!("{error:#}"), "the header of a source image cannot be read");
                unreadable.push(source.clone());
            }
        }
    }
    if sources.is_empty() {
        for source in unreadable {
            let stored = archive.read_stored(&source.archive_key)?;
            let header = SourceHeader::from_archive(&stored.header, &stored.transfer_syntax_uid);
            sources.push((source, header));
        }
    }
    Ok(sources)
}

/// Renders one object; a picture from `painted`, which is painted when it is not there yet.
fn render(
    spec: &ResultSpec,
    order: &Order,
    sources: &[Source],
    painted: &mut Option<pictures::Painted>,
    archive: &Archive,
    options: &RenderOptions,
    limits: DecodeLimits,
) -> anyhow::Result<RenderedObject> {
    let (record, masks) = (&order.run.record, order.masks.as_ref());
    if let Some(form) = spec.picture_form()
        && painted.is_none()
    {
        let texts = options.texts.language(&form.language);
        *painted = Some(pictures::paint(spec, record, masks, archive, limits, texts)?);
    }
    let pixels = || painted.as_ref().map(|(pixels, _)| pixels).context("nothing was painted");
    Ok(match spec {
        ResultSpec::HeatMap { image_idx, form } => {
            report::render_heat_map(record, *image_idx, form, sources, pixels()?, options)?
        }
        ResultSpec::CtSummary(form) => report::render_ct_summary(record, form, sources, pixels()?, options)?,
        ResultSpec::CtSlice { slice, form } => {
            report::render_ct_slice(record, *slice, form, sources, pixels()?, options)?
        }
        ResultSpec::Segmentation(shown) => report::render_segmentation(record, *shown, masks, sources, options)?,
        ResultSpec::PresentationState { image_idx, language } => {
            report::render_presentation_state(record, *image_idx, language, sources, options)?
        }
        ResultSpec::Report(form) => report::render_report(record, sources, form, options)?,
        ResultSpec::TextCompanion(form) => report::render_text_companion(record, sources, form, options)?,
        ResultSpec::KeyObjects { language } => report::render_key_objects(record, language, sources, options)?,
    })
}

/// Results take patient and study from the last source: a name that was corrected at the scanner comes with the image
/// that was received last, wherever that lies in the record.
fn newest_last<T>(sources: &mut [(SourceImage, T)], received_at: &HashMap<String, OffsetDateTime>) {
    sources.sort_by_key(|(source, _)| received_at.get(&source.archive_key).copied());
}

fn store(
    archive: &Archive,
    record: &RunRecord,
    object: &RenderedObject,
    ordinal: usize,
    preview_png: Option<&[u8]>,
) -> anyhow::Result<result::NewResult> {
    let kind = object.kind.as_str();
    // Named by what is in it: a rendering that comes late, after another one has counted, replaces no file by another object.
    let store_file = |bytes: &[u8], extension: &str| {
        let part = format!("{kind}-{}.{extension}", object.sop_instance_uid);
        archive.store_result(bytes, record.run_id, record.started_at, &part)
    };
    Ok(result::NewResult {
        run_id: record.run_id,
        kind,
        ordinal: i32::try_from(ordinal)?,
        sop_class_uid: object.sop_class_uid.clone(),
        sop_instance_uid: object.sop_instance_uid.clone(),
        series_instance_uid: object.series_instance_uid.clone(),
        transfer_syntax_uid: object.transfer_syntax_uid.clone(),
        archive_key: store_file(&object.part10, "dcm")?,
        preview_key: preview_png.map(|png| store_file(png, "png")).transpose()?,
        sha256: object.sha256,
        size_bytes: object.part10.len() as u64,
        device_uid: record.installation.device_uid.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::{
        archive::ImplementationIds,
        report::samples::{self, SampleSource},
        types::{NotAnalysed, ReasonCode, Sha256Digest, Uid},
    };

    fn site() -> SiteConfig {
        toml::from_str(
            r#"
            [[destination]]
            name = "pacs"
            kind = "dicom"
            peer = "pacs"
            calling_ae_title = "HILUM"
            [[destination]]
            name = "quality"
            kind = "dicom"
            peer = "pacs"
            calling_ae_title = "HILUM"
            send_not_analysed = true
            "#,
        )
        .unwrap()
    }

    fn rule(text: &str) -> ResultRule {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn rules_add_destinations_once_and_hurry_and_are_told() {
        let record = samples::analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        let route = ["pacs".to_owned()];
        let rules = [
            rule("when = 'disagreement'\nat_least = 0.0\ndestinations = ['pacs', 'quality']\npriority = 'high'"),
            rule("when = 'score'\nat_least = 0.0\ndestinations = ['nowhere']"),
        ];
        let found = recipients(&record, &route, &rules, &[], &site());
        assert_eq!(found.destinations, ["pacs", "quality"]);
        assert!(!found.urgent && found.rulings[0].contains("withheld"), "{:?}", found.rulings);
        let validated = samples::analysed(BundleStatus::Validated, &SampleSource::new("1.2.3"));
        assert!(recipients(&validated, &route, &rules[..1], &[], &site()).urgent);
        assert!(found.rulings[0].starts_with("rule 1: the members differ by"), "{:?}", found.rulings);
        assert!(found.rulings[1].contains("is not validated"), "{:?}", found.rulings);
        let without = recipients(&record, &route, &[], &[], &site());
        assert_eq!((without.urgent, without.rulings.len()), (false, 0));
    }

    #[test]
    fn what_was_not_analysed_goes_to_those_who_want_to_know_and_where_rules_say() {
        let mut record = samples::analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        let reason = ReasonCode::LungMask;
        record.outcome = RunOutcome::NotAnalysed(NotAnalysed { reason, words: "none".to_owned(), sources: Vec::new() });
        let route = ["pacs".to_owned(), "quality".to_owned()];
        assert_eq!(recipients(&record, &route, &[], &[], &site()).destinations, ["quality"]);
        let rules = [rule("when = 'gate_failed'\ndestinations = ['pacs']")];
        assert_eq!(recipients(&record, &route, &rules, &[], &site()).destinations, ["quality", "pacs"]);
        // Who has what it replaces is told, as long as it is configured.
        let told = ["pacs".to_owned(), "gone".to_owned()];
        let found = recipients(&record, &route, &[], &told, &site());
        assert_eq!(found.destinations, ["quality", "pacs"]);
        assert!(found.rulings[0].contains("pacs, which has the report of an earlier revision"), "{:?}", found.rulings);
    }

    /// A radiograph whose image is gone from the archive: nothing can be painted.
    fn order_without_image(folder: &std::path::Path, is_last_attempt: bool) -> (Order, Vec<Source>, Archive) {
        let source = SampleSource::new("1.2.3");
        let record = samples::analysed(BundleStatus::Unvalidated, &source);
        let sources = vec![(source.image(), source.header())];
        let owed = vec![report::owed(&record, &ResultProfile::default(), &[], &Predecessors::default())];
        let run =
            FinishedRun { workup_id: Uuid::nil(), destinations: vec!["pacs".to_owned()], rules: Vec::new(), record };
        let recipients = Recipients { destinations: vec!["pacs".to_owned()], urgent: false, rulings: Vec::new() };
        let (received_at, masks, left_out) = (HashMap::new(), None, Vec::new());
        let order = Order { run, received_at, masks, recipients, owed, is_last_attempt, left_out };
        let ids = ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".to_owned() };
        (order, sources, Archive::open(folder, ids, 0).unwrap())
    }

    #[test]
    fn what_cannot_be_made_keeps_no_report_back() {
        let folder = tempfile::tempdir().unwrap();
        let options = samples::options();
        let (mut early, sources, archive) = order_without_image(folder.path(), false);
        let refused = early.render_from(&sources, &archive, &options, DecodeLimits::default()).unwrap_err();
        assert!(format!("{refused:#}").starts_with("heat map of image 1: "), "{refused:#}");

        let (mut last, ..) = order_without_image(folder.path(), true);
        let stored = last.render_from(&sources, &archive, &options, DecodeLimits::default()).unwrap();
        let kinds: Vec<&str> = stored.iter().map(|(_, new)| new.kind).collect();
        assert_eq!(kinds, ["sr", "sr", "sr", "sr_text"]);
        assert!(stored.iter().all(|(_, new)| archive.read(&new.archive_key).is_ok()));
        assert_eq!(last.left_out.len(), 1, "{:?}", last.left_out);
        assert!(last.left_out[0].starts_with("heat map of image 1: "), "{:?}", last.left_out);
        assert_eq!(last.owed[0].len(), 2, "the report and its sentences are owed, no picture");
    }

    #[test]
    fn a_report_refers_to_no_segmentation_that_was_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (mut order, ..) = order_without_image(folder.path(), true);
        let profile = ResultProfile { segmentation: crate::types::SegmentationFor::All, ..ResultProfile::default() };
        order.owed =
            vec![report::owed(&order.run.record, &profile, &[], &Predecessors::default()), order.owed.remove(0)];
        let segmentation = ResultSpec::Segmentation(report::Shown::Radiograph(0));
        let refers = |order: &Order| {
            order.owed[0].iter().flat_map(|owed| &owed.alternatives).any(
                |spec| matches!(spec, ResultSpec::Report(form) | ResultSpec::TextCompanion(form) if form.with_segmentation),
            )
        };
        assert!(refers(&order) && order.owed[0].len() == 4, "{:?}", order.owed);
        order.leave_out(&segmentation, &anyhow::anyhow!("no lungs"));
        assert!(!refers(&order) && order.owed[0].len() == 3, "{:?}", order.owed);
        assert_eq!(order.owed[1].len(), 3, "the other destination wanted none");
        assert_eq!(order.left_out, ["segmentation: no lungs"]);
    }

    #[test]
    fn the_image_that_was_received_last_gives_patient_and_study() {
        let source = |key: &str| SourceImage {
            sop_class_uid: Uid::new("1.2").unwrap(),
            sop_instance_uid: Uid::new("1.2.3").unwrap(),
            series_instance_uid: Uid::new("1.2.4").unwrap(),
            modality: "CT".to_owned(),
            archive_key: key.to_owned(),
            sha256: Sha256Digest::of(key.as_bytes()),
        };
        let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second);
        let received_at = HashMap::from([
            ("lowest".to_owned(), at(2)),
            ("corrected".to_owned(), at(9)),
            ("highest".to_owned(), at(3)),
        ]);
        let mut sources: Vec<_> = ["unknown", "corrected", "lowest", "highest"].map(|key| (source(key), ())).into();
        newest_last(&mut sources, &received_at);
        let keys: Vec<&str> = sources.iter().map(|(source, ())| source.archive_key.as_str()).collect();
        assert_eq!(keys, ["unknown", "lowest", "highest", "corrected"]);
    }
}
