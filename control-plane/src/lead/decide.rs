//! Whether a candidate may take a lease: a function of what the lease says, who asks, and the time. Pure.

use std::time::{Duration, Instant};

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Empty: nobody.
    pub holder: String,
    pub duration: Duration,
    /// Changes with each write.
    pub version: String,
}

/// A record, and when it was first seen as it is, by this machine's clock: the times in it are of another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    record: Record,
    since: Instant,
}

impl Observed {
    /// What is observed now that `record` was read.
    pub fn next(before: Option<Self>, record: Option<Record>, now: Instant) -> Option<Self> {
        let record = record?;
        match before {
            Some(before) if before.record == record => Some(before),
            _ => Some(Self { record, since: now }),
        }
    }
}

/// What a candidate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Take,
    Renew,
    Wait,
}

/// `observed` is None where there is no Lease.
pub fn decide(observed: Option<&Observed>, me: &str, now: Instant) -> Step {
    match observed {
        None => Step::Take,
        Some(Observed { record, .. }) if record.holder == me => Step::Renew,
        Some(Observed { record, .. }) if record.holder.is_empty() => Step::Take,
        Some(Observed { record, since }) if now.duration_since(*since) >= record.duration => {
            Step::Take
        }
        Some(_) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{LEASE_DURATION, RENEW_DEADLINE, Term};
    use super::*;

    fn record(holder: &str, version: u64) -> Record {
        Record {
            holder: holder.to_owned(),
            duration: LEASE_DURATION,
            version: version.to_string(),
        }
    }

    #[test]
    fn a_lease_is_taken_that_is_free_or_stands_still() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let seen = Observed::next(None, Some(record("a", 1)), at(0));
        assert_eq!(decide(None, "b", at(0)), Step::Take);
        assert_eq!(decide(seen.as_ref(), "a", at(100)), Step::Renew);
        assert_eq!(decide(seen.as_ref(), "b", at(14)), Step::Wait);
        let same = Observed::next(seen.clone(), Some(record("a", 1)), at(14));
        assert_eq!(decide(same.as_ref(), "b", at(15)), Step::Take);
        let renewed = Observed::next(same, Some(record("a", 2)), at(14));
        assert_eq!(decide(renewed.as_ref(), "b", at(15)), Step::Wait);
        let free = Observed::next(renewed, Some(record("", 3)), at(15));
        assert_eq!(decide(free.as_ref(), "b", at(15)), Step::Take);
        assert_eq!(Observed::next(free, None, at(16)), None);
    }

    /// One try of a candidate: how long it waits before, and how long its read, its decision and its answer take.
    type Try = [u64; 4];

    /// Where a candidate is in its present try.
    enum Phase {
        Reads,
        Decides { read: Option<(String, u64)> },
        Writes { expected: u64 },
        Hears { written: bool },
    }

    struct Candidate {
        tries: std::vec::IntoIter<Try>,
        now: Try,
        phase: Phase,
        /// When the next phase is over, and when the try began.
        next: u64,
        asked: u64,
        observed: Option<Observed>,
        term: Option<Term>,
    }

    /// The lease in the store: holder and version; none before the first.
    type Stored = Option<(String, u64)>;

    /// Goes one phase further; false when there is nothing more to do.
    fn go_on(me: &str, it: &mut Candidate, stored: &mut Stored, start: Instant) -> bool {
        let at = |millis| start + Duration::from_millis(millis);
        let delay;
        (it.phase, delay) = match std::mem::replace(&mut it.phase, Phase::Reads) {
            Phase::Reads => {
                it.asked = it.next;
                (
                    Phase::Decides {
                        read: stored.clone(),
                    },
                    it.now[1],
                )
            }
            Phase::Decides { read } => {
                let seen = read
                    .as_ref()
                    .map(|(holder, version)| record(holder, *version));
                it.observed = Observed::next(it.observed.take(), seen, at(it.next));
                match decide(it.observed.as_ref(), me, at(it.next)) {
                    Step::Wait => (Phase::Hears { written: false }, 0),
                    _ => {
                        let expected = read.map_or(0, |(_, version)| version);
                        (Phase::Writes { expected }, it.now[2])
                    }
                }
            }
            Phase::Writes { expected } => {
                let version = stored.as_ref().map_or(0, |(_, version)| *version);
                let written = version == expected;
                if written {
                    *stored = Some((me.to_owned(), version + 1));
                }
                (Phase::Hears { written }, it.now[3])
            }
            Phase::Hears { written } => {
                let until = at(it.asked) + RENEW_DEADLINE;
                match it.term.take().filter(|term| term.lasts(at(it.next))) {
                    Some(term) if written => {
                        term.extend(until);
                        it.term = Some(term);
                    }
                    None if written => it.term = Some(Term::until(until)),
                    _ => {}
                }
                let Some(next) = it.tries.next() else {
                    return false;
                };
                it.now = next;
                (Phase::Reads, next[0])
            }
        };
        it.next += delay;
        true
    }

    fn tries() -> impl Strategy<Value = Vec<Try>> {
        let quick = [0..4_000u64, 0..300, 0..300, 0..300];
        let slow = [0..40_000u64, 0..20_000, 0..20_000, 0..20_000];
        proptest::collection::vec(prop_oneof![4 => quick, 1 => slow], 1..40)
    }

    proptest! {
        /// However long reads, decisions and answers take, no two have a term at a time.
        #[test]
        fn no_two_lead_at_a_time(all in proptest::collection::vec(tries(), 2..4)) {
            let start = Instant::now();
            let mut stored: Stored = None;
            let names = ["a", "b", "c"];
            let mut candidates: Vec<Candidate> = all.into_iter().map(|tries| {
                let mut tries = tries.into_iter();
                let now = tries.next().unwrap_or_default();
                Candidate {
                    tries, now, phase: Phase::Reads, next: now[0], asked: 0, observed: None, term: None,
                }
            }).collect();
            let mut running: Vec<usize> = (0..candidates.len()).collect();
            while let Some(who) = running.iter().copied().min_by_key(|at| candidates[*at].next) {
                let moment = start + Duration::from_millis(candidates[who].next);
                if !go_on(names[who], &mut candidates[who], &mut stored, start) {
                    running.retain(|at| *at != who);
                }
                let lead = candidates.iter().filter(|it| {
                    it.term.as_ref().is_some_and(|term| term.lasts(moment))
                });
                prop_assert!(lead.count() <= 1);
            }
        }
    }
}
