//! The job `deliver`: sends everything that is due for one destination, study by study, in order.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Caller, Tokens, Verdict, backoff,
    policy::FAILURES_UNTIL_OPEN,
    way::{Answer, Carrier, Target, Way},
};
use crate::{
    archive::Archive,
    db::{self, Db, delivery, delivery::DueDelivery, destination, event},
    jobs::{self, Job, JobHandler},
    telemetry::{DeliveryEnd, Metrics, events},
    types::{Destination, DestinationKind, SiteConfig, Uid},
};

/// How deliveries are made.
#[derive(Debug, Clone, Copy)]
pub struct DeliverSettings {
    /// A delivery older than this is given up.
    pub maximum_age: Duration,
    /// Pause after the first failure.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub maximum_backoff: Duration,
}

/// Deliveries that go on one association.
const BATCH: i64 = 50;

/// Drains the ledger of one destination.
#[derive(Clone)]
pub struct Deliver {
    /// Where the rows are.
    pub db: Db,
    /// Where the files are.
    pub archive: Archive,
    /// Limits and pauses.
    pub settings: DeliverSettings,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Calls the destination.
    pub caller: Caller,
    /// What authorization servers have given us.
    pub tokens: Tokens,
}

impl JobHandler for Deliver {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.drain(&id).await })
    }
}

/// Deliveries that go one after the other over one way: all of a run are in one lane.
struct Lane {
    destination: Arc<Destination>,
    /// Where it leads, or why that is not known.
    target: Result<Target, String>,
    due: VecDeque<DueDelivery>,
    /// What may take the place of one that the destination does not take.
    spares: Vec<DueDelivery>,
}

/// Whether failures of one delivery say something of all to this destination.
fn counts(destination: &Destination) -> bool {
    destination.kind != DestinationKind::ReturnToSender
}

/// How a destination failed.
#[derive(Debug, Clone, Copy, Default)]
struct Failure {
    /// The pause that it asks for.
    retry_after: Option<Duration>,
    /// It was not reached at all.
    unreachable: bool,
    /// It broke at an object at which it had broken before.
    again: bool,
}

/// What became of a delivery.
enum Closed {
    /// Delivered, or given up.
    For,
    /// Another form of it is to be sent now.
    Next(Box<DueDelivery>),
    /// It is tried again later.
    Later {
        /// What comes after it in its run waits.
        holds_back: bool,
    },
}

impl Deliver {
    async fn drain(&self, name: &str) -> anyhow::Result<()> {
        loop {
            let site = db::site::load(&mut *self.db.acquire().await?).await?;
            let Some(destination) = site.destinations.iter().find(|destination| destination.name == name) else {
                self.unknown(name).await?;
                break;
            };
            if !self.may_try(destination, &site).await? {
                break;
            }
            let limit = BATCH * i64::from(destination.maximum_associations);
            let due = delivery::due(&mut *self.db.acquire().await?, name, limit).await?;
            if due.is_empty() {
                self.ask(destination, &site).await?;
                break;
            }
            self.send_all(due, destination, &site).await?;
        }
        let mut tx = self.db.begin().await?;
        let state = destination::get(&mut tx, name).await?;
        let pause = state.as_ref().and_then(|state| state.next_probe_at);
        let next = delivery::next_due_at(&mut tx, name).await?;
        // One that is left alone is asked after its pause, also when nothing waits for it.
        let looks = next.is_some() || state.as_ref().is_some_and(destination::DestinationState::is_open);
        if let Some(at) = next.max(pause).filter(|_| looks) {
            jobs::queue(&mut tx, &self.db, &Job::Deliver(name.to_owned()), Some(at)).await?;
        }
        tx.commit().await.context("commit")
    }

    /// Whether the destination is tried now. One that has failed again and again is asked first whether it is there.
    async fn may_try(&self, destination: &Destination, site: &SiteConfig) -> anyhow::Result<bool> {
        // Senders that results return to are many, and each answers for itself.
        let name = &destination.name;
        if !counts(destination) {
            destination::forget(&mut *self.db.acquire().await?, name).await?;
            return Ok(true);
        }
        let state = destination::get(&mut *self.db.acquire().await?, name).await?;
        let now = OffsetDateTime::now_utc();
        let Some(state) = state else { return Ok(true) };
        if state.next_probe_at.is_some_and(|at| at > now) {
            return Ok(false);
        }
        if !state.is_open() {
            return Ok(true);
        }
        let found = match Target::of(site, destination, "", "") {
            Ok(target) => target.probe(&self.caller, &self.tokens).await,
            Err(words) => Err(words),
        };
        let words = match found {
            Ok(words) => {
                let mut tx = self.db.begin().await?;
                destination::answered_probe(&mut tx, name).await?;
                tx.commit().await.context("commit")?;
                tracing::info!(destination = name, words, "the destination answers again");
                return Ok(true);
            }
            Err(words) => words,
        };
        self.failed(name, &words, Failure { unreachable: true, ..Failure::default() }).await?;
        self.expire(name, "the destination cannot be reached", &words).await?;
        Ok(false)
    }

    /// Gives up what has waited for too long for a destination, of which this is `so`.
    async fn expire(&self, name: &str, so: &str, words: &str) -> anyhow::Result<()> {
        let maximum_age = self.settings.maximum_age;
        let given_up = format!(
            "given up after {} days: {so}; run `hilum deliveries --restart-dead {name}` when it works: {words}",
            maximum_age.as_secs() / 86_400
        );
        let before = OffsetDateTime::now_utc() - maximum_age;
        loop {
            let mut tx = self.db.begin().await?;
            let count = delivery::expire(&mut tx, name, before, &given_up).await?;
            tx.commit().await.context("commit")?;
            if count == 0 {
                return Ok(());
            }
            events::DeliveriesExpired { destination: name, count, words }.emit(&self.metrics);
        }
    }

    /// Counts a failure of the destination. Returns whether it is left alone for a while: when it is `unreachable`, when it
    /// has failed too often, or when it wants to be.
    async fn failed(
        &self,
        name: &str,
        words: &str,
        Failure { retry_after, unreachable, again }: Failure,
    ) -> anyhow::Result<Option<OffsetDateTime>> {
        let mut tx = self.db.begin().await?;
        let state = destination::failed(&mut tx, name, FAILURES_UNTIL_OPEN, words, again).await?;
        let pause = if state.is_open() || unreachable {
            let pause =
                backoff(state.failures, self.settings.initial_backoff, self.settings.maximum_backoff, spread(name));
            Some(pause.max(retry_after.unwrap_or_default()))
        } else {
            retry_after
        };
        let until = pause.map(|pause| OffsetDateTime::now_utc() + pause);
        if let Some(until) = until {
            destination::pause_until(&mut tx, name, until).await?;
        }
        tx.commit().await.context("commit")?;
        if state.failures == FAILURES_UNTIL_OPEN {
            tracing::warn!(
                destination = name,
                failures = state.failures,
                words,
                "the destination is left alone until it answers"
            );
        }
        Ok(until)
    }

    /// A destination that is not configured any more: its deliveries grow old, and go when it is added again. They are not
    /// tried, so that a long list of them costs next to nothing.
    async fn unknown(&self, name: &str) -> anyhow::Result<()> {
        self.let_go(name, false).await?;
        destination::forget_unknown(&mut *self.db.acquire().await?).await?;
        let words =
            format!("destination `{name}` is no longer configured; add it again, or let its deliveries grow old");
        let mut told = 0;
        loop {
            let pause = self.settings.maximum_backoff;
            let more = delivery::suspend(&mut *self.db.acquire().await?, name, &words, pause).await?;
            if more == 0 {
                break;
            }
            told += more;
        }
        if told > 0 {
            tracing::warn!(
                destination = name,
                deliveries = told,
                "deliveries wait for a destination that is not configured"
            );
        }
        self.expire(name, "the destination is not configured", &words).await
    }

    /// Counts attempts that failed without anything sent.
    async fn put_off(
        &self,
        destination: &Destination,
        deliveries: &VecDeque<DueDelivery>,
        words: &str,
        until: Option<OffsetDateTime>,
    ) -> anyhow::Result<()> {
        for delivery in deliveries {
            if let Some(attempt) = self.start(delivery).await? {
                let answer = Answer::new(Verdict::Retry, words.to_owned());
                self.close(destination, delivery, attempt, answer, None, until).await?;
            }
        }
        Ok(())
    }

    /// Sends what is due, in as many lanes as the destination may have.
    async fn send_all(
        &self,
        due: Vec<DueDelivery>,
        destination: &Destination,
        site: &SiteConfig,
    ) -> anyhow::Result<()> {
        let ids: Vec<Uuid> = due.iter().map(|delivery| delivery.id).collect();
        let spares = delivery::spares(&mut *self.db.acquire().await?, &ids).await?;
        let mut waiting = lanes(due, &spares, destination, site).into_iter();
        let mut running = JoinSet::new();
        // Senders that results return to are many: no more at a time than a destination may have lanes.
        let at_once = *Destination::ASSOCIATIONS.end() as usize;
        let mut ended = Ok(());
        loop {
            while running.len() < at_once
                && ended.is_ok()
                && let Some(lane) = waiting.next()
            {
                running.spawn(self.clone().work(lane));
            }
            // What fails in one lane, as Postgres does, ends no other in the middle of an object.
            match running.join_next().await {
                Some(lane) => ended = ended.and(lane.context("a lane of deliveries ended").flatten()),
                None => return ended,
            }
        }
    }

    /// Sends what is in a lane, one after the other. A way that breaks is opened again for what is left; when it cannot be
    /// opened, or the destination is to be left alone, the rest waits.
    async fn work(self, lane: Lane) -> anyhow::Result<()> {
        let Lane { destination, target, mut due, spares } = lane;
        let carrier = self.carrier();
        let counts = counts(&destination);
        let mut way: Option<Way> = None;
        let mut works = false;
        let mut behind = HashMap::<Uuid, i32>::new();
        while let Some(delivery) = due.pop_front() {
            if behind.get(&delivery.run_id).is_some_and(|order| delivery.send_order > *order) {
                continue;
            }
            if way.is_none() {
                let forms = forms(std::iter::once(&delivery).chain(&due).chain(&spares));
                let opened = match &target {
                    Ok(target) => target.open(&carrier, &forms).await,
                    Err(words) => Err(words.clone()),
                };
                match opened {
                    Ok(opened) => way = Some(opened),
                    Err(words) => {
                        let failure = Failure { unreachable: true, ..Failure::default() };
                        let until = if counts { self.failed(&destination.name, &words, failure).await? } else { None };
                        due.push_front(delivery);
                        return self.put_off(&destination, &due, &words, until).await;
                    }
                }
            }
            let Some(open) = way.as_mut() else { break };
            let Some(attempt) = self.start(&delivery).await? else { continue };
            let answer = open.send(&carrier, &delivery).await;
            let alternatives =
                spares.iter().filter(|spare| spare.run_id == delivery.run_id && spare.chain == delivery.chain);
            let next = alternatives.filter(|spare| spare.rank > delivery.rank).find(|spare| open.takes(spare));
            let (broken, words, retry_after) = (answer.broken, answer.words.clone(), answer.retry_after);
            let until = retry_after.map(|pause| OffsetDateTime::now_utc() + pause);
            match self.close(&destination, &delivery, attempt, answer, next, until).await? {
                Closed::For | Closed::Later { holds_back: false } => {}
                Closed::Next(next) => due.push_front(*next),
                Closed::Later { holds_back: true } => {
                    behind.insert(delivery.run_id, delivery.send_order);
                }
            }
            if !broken {
                if counts && !works {
                    works = true;
                    let mut tx = self.db.begin().await?;
                    destination::works(&mut tx, &destination.name).await?;
                    tx.commit().await.context("commit")?;
                }
                continue;
            }
            if let Some(broken) = way.take() {
                broken.abort().await;
            }
            works = false;
            if !counts {
                // A sender that hangs keeps nobody else waiting.
                return self.put_off(&destination, &due, &words, until).await;
            }
            let failure = Failure { retry_after, unreachable: false, again: delivery.broke };
            if self.failed(&destination.name, &words, failure).await?.is_some() {
                return Ok(());
            }
        }
        if let Some(way) = way {
            way.close().await;
        }
        Ok(())
    }

    pub(super) fn carrier(&self) -> Carrier {
        Carrier {
            db: self.db.clone(),
            archive: self.archive.clone(),
            caller: self.caller.clone(),
            tokens: self.tokens.clone(),
        }
    }

    /// Counts the attempt, durably, before anything is sent.
    async fn start(&self, delivery: &DueDelivery) -> anyhow::Result<Option<i32>> {
        let mut tx = self.db.begin().await?;
        let attempt = delivery::start(&mut tx, delivery).await?;
        tx.commit().await.context("commit")?;
        Ok(attempt)
    }

    /// Ends an attempt. `next` may take the delivery's place; it is tried again at `until`, if that is given.
    async fn close(
        &self,
        destination: &Destination,
        delivery: &DueDelivery,
        attempt: i32,
        answer: Answer,
        next: Option<&DueDelivery>,
        until: Option<OffsetDateTime>,
    ) -> anyhow::Result<Closed> {
        let now = OffsetDateTime::now_utc();
        let age = Duration::try_from(now - delivery.created_at).unwrap_or_default();
        let name = &destination.name;
        let mut tx = self.db.begin().await?;
        let mut retry_in = None;
        let not_taken = answer.no_context;
        let told =
            delivery::Answer { attempt, status: answer.status, words: &answer.words, not_taken, broke: answer.broken };
        let verdict = if not_taken && next.is_some() { Verdict::NextForm } else { answer.verdict };
        let replaced = match (verdict, next) {
            (Verdict::NextForm, Some(next)) => delivery::replaced(&mut tx, delivery, told, next).await?,
            _ => false,
        };
        // The other form was cancelled meanwhile.
        let verdict =
            if verdict == Verdict::NextForm && next.is_some() && !replaced { Verdict::Retry } else { verdict };
        let (end, closed) = match verdict {
            Verdict::Delivered => {
                delivery::delivered(&mut tx, delivery, told, destination.commitment).await?;
                (DeliveryEnd::Delivered, Closed::For)
            }
            Verdict::NextForm if replaced => {
                let next = next.map(|next| DueDelivery { created_at: now, ..next.clone() });
                (DeliveryEnd::Replaced, next.map_or(Closed::For, |next| Closed::Next(Box::new(next))))
            }
            Verdict::Retry if age < self.settings.maximum_age => {
                let spread = f64::from(delivery.id.as_bytes()[15]) / 255.0;
                let pause = backoff(attempt, self.settings.initial_backoff, self.settings.maximum_backoff, spread);
                // Not at once, whatever the peer would have.
                let retry_at = until.map_or(now + pause, |at| at.max(now + self.settings.initial_backoff));
                if delivery::retry(&mut tx, delivery, told, retry_at).await? {
                    retry_in = Some(Duration::try_from(retry_at - now).unwrap_or_default());
                    let refusals = delivery.refusals + i32::from(told.status.is_some() || told.broke);
                    let holds_back = !not_taken && delivery::holds_back(delivery.send_order, refusals);
                    (DeliveryEnd::Retry, Closed::Later { holds_back })
                } else {
                    (DeliveryEnd::Cancelled, Closed::For)
                }
            }
            Verdict::Retry => {
                let words = format!(
                    "given up after {attempt} attempts in {} days; run `hilum deliveries --restart-dead {name}` when the \
                     destination works: {}",
                    age.as_secs() / 86_400,
                    answer.words
                );
                let is_dead = delivery::dead(&mut tx, delivery, delivery::Answer { words: &words, ..told }).await?;
                (in_vain(is_dead), Closed::For)
            }
            Verdict::Dead | Verdict::NextForm => {
                let is_dead = delivery::dead(&mut tx, delivery, told).await?;
                (in_vain(is_dead), Closed::For)
            }
        };
        if let Some(comment) = &answer.peer_comment {
            // Postgres text cannot hold NUL, which a hostile peer may send.
            let comment = comment.replace('\0', "\u{fffd}");
            let data = serde_json::json!({ "attempt": attempt, "error_comment": comment });
            event::append(
                &mut tx,
                event::Subject::Delivery,
                delivery.id,
                "peer_comment",
                "the destination commented on its answer; the text is in this event's data",
                data,
            )
            .await?;
        }
        tx.commit().await.context("commit")?;
        if let Ok(sop_instance_uid) = Uid::new(&delivery.sop_instance_uid) {
            events::DeliveryEnded {
                delivery_id: delivery.id,
                destination: name,
                sop_instance_uid: &sop_instance_uid,
                end,
                attempt: u32::try_from(attempt).unwrap_or_default(),
                status: answer.status,
                words: &answer.words,
                retry_in,
            }
            .emit(&self.metrics);
        }
        Ok(closed)
    }
}

fn in_vain(is_dead: bool) -> DeliveryEnd {
    if is_dead { DeliveryEnd::Dead } else { DeliveryEnd::Cancelled }
}

/// Destinations that fail at the same time are not all tried again at the same time.
fn spread(name: &str) -> f64 {
    f64::from(name.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))) / 255.0
}

/// Each form once: SOP class and transfer syntax.
fn forms<'a>(deliveries: impl Iterator<Item = &'a DueDelivery>) -> Vec<(String, String)> {
    let mut forms: Vec<(String, String)> = Vec::new();
    for delivery in deliveries {
        let form = (delivery.sop_class_uid.clone(), delivery.transfer_syntax_uid.clone());
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// Distributes deliveries: each run in one lane, each sender's results in lanes of their own where they return to it.
fn lanes(due: Vec<DueDelivery>, spares: &[DueDelivery], destination: &Destination, site: &SiteConfig) -> Vec<Lane> {
    let maximum = usize::try_from(destination.maximum_associations).unwrap_or(1).max(1);
    let shared = Arc::new(destination.clone());
    let mut lanes: Vec<(String, Lane)> = Vec::new();
    let mut lane_of_run = HashMap::<Uuid, usize>::new();
    let mut runs_of_key = HashMap::<String, usize>::new();
    for delivery in due {
        let lane_idx = lane_of_run.get(&delivery.run_id).copied().unwrap_or_else(|| {
            let returns = destination.kind == DestinationKind::ReturnToSender;
            let (sender, local) = (delivery.sender_ae_title.as_str(), delivery.local_ae_title.as_str());
            let whom = if returns { format!("{sender} {local}") } else { String::new() };
            let runs = runs_of_key.entry(whom.clone()).or_default();
            let key = format!("{} {whom}", *runs % maximum);
            *runs += 1;
            let known = lanes.iter().position(|(of_lane, _)| *of_lane == key);
            let lane_idx = known.unwrap_or_else(|| {
                let target = Target::of(site, destination, sender, local);
                let lane = Lane { destination: Arc::clone(&shared), target, due: VecDeque::new(), spares: Vec::new() };
                lanes.push((key, lane));
                lanes.len() - 1
            });
            lane_of_run.insert(delivery.run_id, lane_idx);
            lane_idx
        });
        if let Some((_, lane)) = lanes.get_mut(lane_idx) {
            lane.due.push_back(delivery);
        }
    }
    for spare in spares {
        if let Some((_, lane)) = lane_of_run.get(&spare.run_id).and_then(|lane_idx| lanes.get_mut(*lane_idx)) {
            lane.spares.push(spare.clone());
        }
    }
    lanes.into_iter().map(|(_, lane)| lane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AeTitle, Peer};

    fn due(run: u128, order: i32, sender: &str) -> DueDelivery {
        DueDelivery {
            id: Uuid::new_v4(),
            run_id: Uuid::from_u128(run),
            workup_id: Uuid::from_u128(run),
            study_instance_uid: "1.2".into(),
            sender_ae_title: sender.into(),
            local_ae_title: "HILUM".into(),
            sop_class_uid: format!("1.2.{order}"),
            sop_instance_uid: "1.2.3".into(),
            transfer_syntax_uid: "1.2.840.10008.1.2.1".into(),
            archive_key: "results/x.dcm".into(),
            send_order: order,
            chain: "sr0".into(),
            rank: 0,
            urgent: false,
            broke: false,
            attempts: 0,
            refusals: 0,
            created_at: OffsetDateTime::now_utc(),
        }
    }

    #[test]
    fn a_run_stays_in_one_lane_in_its_order() {
        let title = AeTitle::new("HILUM").unwrap();
        let mut destination = Destination::dicom("pacs", "pacs", title);
        let all = || (0..12).map(|idx| due(idx / 3, i32::try_from(idx % 3).unwrap(), "CT")).collect::<Vec<_>>();
        let made = lanes(all(), &[], &destination, &SiteConfig::default());
        assert_eq!((made.len(), made[0].due.len()), (1, 12));
        assert!(made[0].target.as_ref().is_err_and(|words| words.contains("which is not configured")));
        destination.maximum_associations = 3;
        let spare = DueDelivery { rank: 1, ..due(1, 2, "CT") };
        let made = lanes(all(), std::slice::from_ref(&spare), &destination, &SiteConfig::default());
        assert_eq!(made.iter().map(|lane| lane.due.len()).collect::<Vec<_>>(), [6, 3, 3]);
        assert_eq!(made[1].spares, [spare]);
        for lane in &made {
            let orders: Vec<(Uuid, i32)> = lane.due.iter().map(|one| (one.run_id, one.send_order)).collect();
            assert!(orders.windows(2).all(|two| two[0] < two[1]), "{orders:?}");
        }
    }

    #[test]
    fn each_sender_has_its_own_lane() {
        let destination = Destination::new("back", DestinationKind::ReturnToSender);
        let mut peer = Peer::new("ct1", AeTitle::new("CT1").unwrap(), "192.0.2.1");
        peer.port = Some(104);
        let site = SiteConfig { peers: vec![peer], ..SiteConfig::default() };
        let made = lanes(vec![due(1, 0, "CT1"), due(2, 0, "CT2"), due(3, 0, "CT1")], &[], &destination, &site);
        assert_eq!(made.iter().map(|lane| lane.due.len()).collect::<Vec<_>>(), [2, 1]);
        assert!(made[0].target.is_ok() && made[1].target.is_err());
    }

    #[test]
    fn forms_are_proposed_once() {
        let all = [due(1, 0, "CT"), due(2, 0, "CT"), due(2, 1, "CT")];
        assert_eq!(forms(all.iter()).len(), 2);
    }
}
