//! Limits that associations share: how many are open, how many begin in a minute, how many bytes come in a second.
//!
//! Pure but for a lock: time is given by the caller.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::rejection::Rejection;

/// What the associations of one subject may use together. The same subject always comes with the same limits, until
/// an administrator changes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Whose associations, such as ``peer `ct-1` ``.
    pub subject: String,
    /// Open at the same time.
    pub max_associations: Option<u32>,
    /// Begun within a minute.
    pub max_associations_per_minute: Option<u32>,
    /// Data set bytes received in a second.
    pub max_bytes_per_second: Option<u64>,
}

/// What is in use of every quota.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    subjects: Mutex<HashMap<String, Usage>>,
}

#[derive(Debug)]
struct Usage {
    n_open: u32,
    /// Associations that may begin at once; grows with time.
    begin_credit: f64,
    credited_at: Instant,
    pacer: Arc<Pacer>,
}

impl Usage {
    fn new(quota: &Quota, now: Instant) -> Self {
        Self {
            n_open: 0,
            begin_credit: quota.max_associations_per_minute.map_or(f64::INFINITY, f64::from),
            credited_at: now,
            pacer: Arc::new(Pacer { paid_until: Mutex::new(now) }),
        }
    }

    fn credit(&mut self, per_minute: u32, now: Instant) {
        let minutes = now.saturating_duration_since(self.credited_at).as_secs_f64() / 60.0;
        self.begin_credit = (self.begin_credit + minutes * f64::from(per_minute)).min(f64::from(per_minute));
        self.credited_at = now;
    }
}

/// A share of some quotas, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    quotas: Arc<Quotas>,
    subjects: Vec<String>,
    pace: Pace,
}

impl Share {
    /// How fast the holder may receive.
    pub(crate) fn pace(&self) -> Pace {
        self.pace.clone()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut subjects = self.quotas.lock();
        for subject in &self.subjects {
            if let Some(usage) = subjects.get_mut(subject) {
                usage.n_open = usage.n_open.saturating_sub(1);
            }
        }
    }
}

impl Quotas {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Usage>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One association of each of `quotas`, or none of any and the reason.
    pub(crate) fn take(self: &Arc<Self>, quotas: &[Quota], now: Instant) -> Result<Share, Rejection> {
        let mut subjects = self.lock();
        // What nobody uses and no longer remembers anything is forgotten: addresses come and go.
        subjects.retain(|_, usage| {
            usage.n_open > 0 || now.saturating_duration_since(usage.credited_at) < Duration::from_mins(1)
        });
        for quota in quotas {
            let usage = subjects.entry(quota.subject.clone()).or_insert_with(|| Usage::new(quota, now));
            usage.may_begin(quota, now)?;
        }
        let mut pace = Pace::default();
        for quota in quotas {
            let Some(usage) = subjects.get_mut(&quota.subject) else { continue };
            usage.n_open += 1;
            usage.begin_credit -= 1.0;
            if let Some(bytes_per_second) = quota.max_bytes_per_second {
                pace.limits.push((bytes_per_second, Arc::clone(&usage.pacer)));
            }
        }
        let subjects = quotas.iter().map(|quota| quota.subject.clone()).collect();
        Ok(Share { quotas: Arc::clone(self), subjects, pace })
    }
}

impl Usage {
    fn may_begin(&mut self, quota: &Quota, now: Instant) -> Result<(), Rejection> {
        let subject = &quota.subject;
        if let Some(limit) = quota.max_associations
            && self.n_open >= limit
        {
            return Err(Rejection::local_limit_exceeded(
                format!("at most {limit} associations of {subject} at once"),
                format!("one more while {} are open", self.n_open),
                format!(
                    "try again later, let the sender reuse its associations, or raise max_associations of {subject}"
                ),
            ));
        }
        if let Some(limit) = quota.max_associations_per_minute {
            self.credit(limit, now);
            if self.begin_credit < 1.0 {
                return Err(Rejection::local_limit_exceeded(
                    format!("at most {limit} new associations of {subject} in a minute"),
                    "one more within the minute",
                    format!(
                        "try again later, let the sender send more objects on one association, or raise \
                         max_associations_per_minute of {subject}"
                    ),
                ));
            }
        } else {
            self.credited_at = now;
        }
        Ok(())
    }
}

/// Until when what was received is paid for.
#[derive(Debug)]
struct Pacer {
    paid_until: Mutex<Instant>,
}

/// How fast an association may receive: as fast as the slowest of its quotas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    limits: Vec<(u64, Arc<Pacer>)>,
}

impl Pace {
    /// What a sender may be ahead of its rate.
    const BURST: Duration = Duration::from_secs(1);

    /// How long to wait before reading on, after `n_bytes` have been read.
    pub(crate) fn pause_after(&self, n_bytes: usize, now: Instant) -> Duration {
        let mut longest = Duration::ZERO;
        for (bytes_per_second, pacer) in &self.limits {
            let cost = Duration::from_secs_f64(n_bytes as f64 / (*bytes_per_second).max(1) as f64);
            let mut paid_until = pacer.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            // Time that passed unused is not saved up.
            *paid_until = (*paid_until).max(now) + cost;
            let ahead = paid_until.saturating_duration_since(now);
            longest = longest.max(ahead.saturating_sub(Self::BURST));
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dimse::{RejectReason, RejectResult};

    fn quota(subject: &str) -> Quota {
        Quota {
            subject: subject.into(),
            max_associations: None,
            max_associations_per_minute: None,
            max_bytes_per_second: None,
        }
    }

    #[test]
    fn one_subject_at_its_limit_does_not_keep_another_out() {
        let quotas = Arc::new(Quotas::default());
        let now = Instant::now();
        let (ct, dx) = (Quota { max_associations: Some(2), ..quota("peer `ct`") }, quota("peer `dx`"));
        let first = quotas.take(std::slice::from_ref(&ct), now).unwrap();
        let _second = quotas.take(std::slice::from_ref(&ct), now).unwrap();
        let refused = quotas.take(&[dx.clone(), ct.clone()], now).unwrap_err();
        assert_eq!((refused.result, refused.reason), (RejectResult::Transient, RejectReason::LocalLimitExceeded));
        assert!(refused.expected.contains("at most 2 associations of peer `ct`"), "{refused}");
        let _other = quotas.take(&[dx], now).unwrap();
        drop(first);
        let _third = quotas.take(&[ct], now).unwrap();
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let quotas = Arc::new(Quotas::default());
        let now = Instant::now();
        let one = Quota { max_associations: Some(1), ..quota("a") };
        let none_left = Quota { max_associations: Some(1), ..quota("b") };
        let _held = quotas.take(std::slice::from_ref(&none_left), now).unwrap();
        assert!(quotas.take(&[one.clone(), none_left], now).is_err());
        assert!(quotas.take(&[one], now).is_ok());
    }

    #[test]
    fn beginnings_are_counted_by_the_minute() {
        let quotas = Arc::new(Quotas::default());
        let start = Instant::now();
        let ct = [Quota { max_associations_per_minute: Some(6), ..quota("peer `ct`") }];
        for _ in 0..6 {
            drop(quotas.take(&ct, start).unwrap());
        }
        let refused = quotas.take(&ct, start).unwrap_err();
        assert!(refused.expected.contains("6 new associations"), "{refused}");
        assert!(quotas.take(&ct, start + Duration::from_secs(9)).is_err());
        assert!(quotas.take(&ct, start + Duration::from_secs(11)).is_ok());
        assert!(quotas.take(&ct, start + Duration::from_secs(11)).is_err());
    }

    #[test]
    fn what_is_not_used_is_forgotten() {
        let quotas = Arc::new(Quotas::default());
        let start = Instant::now();
        for idx in 0..100 {
            drop(quotas.take(&[quota(&idx.to_string())], start).unwrap());
        }
        let _held = quotas.take(&[quota("held")], start + Duration::from_mins(2)).unwrap();
        assert_eq!(quotas.lock().len(), 1);
    }

    #[test]
    fn a_fast_sender_is_slowed_to_its_rate_and_a_slow_one_is_not() {
        let quotas = Arc::new(Quotas::default());
        let start = Instant::now();
        let limited = [Quota { max_bytes_per_second: Some(1000), ..quota("peer `ct`") }];
        let share = quotas.take(&limited, start).unwrap();
        let second = quotas.take(&limited, start).unwrap();
        assert_eq!(share.pace().pause_after(1000, start), Duration::ZERO);
        // Both associations of the peer share its rate.
        assert_eq!(second.pace().pause_after(1000, start), Duration::from_secs(1));
        assert_eq!(share.pace().pause_after(1000, start + Duration::from_secs(10)), Duration::ZERO);
        let unlimited = quotas.take(&[quota("peer `dx`")], start).unwrap();
        assert_eq!(unlimited.pace().pause_after(usize::MAX, start), Duration::ZERO);
    }
}
