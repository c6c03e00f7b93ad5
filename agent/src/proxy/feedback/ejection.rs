//! Backends whose connections fail are not offered for a while. Pure: time is passed in.
//!
//! ```text
//!            refusals, silence or late answers
//! offered ──────────────────────────────────────▶ out, for 1 s, 2 s … 60 s
//!    ▲  a quiet minute: the next time is 1 s again    │
//!    └────────────────────────────────────────────────┘ by itself
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::policy::{Class, Frontend, Target};
use super::signals::Counters;

/// So many failures in a row, and not fewer than successes at any look in between.
const FAILURES: u64 = 3;
/// So many connections without an answer …
const UNANSWERED: u64 = 3;
/// … for so long, while other backends of the service answer. A first SYN that is lost is repeated after a second.
const SILENCE: Duration = Duration::from_millis(1500);
/// So many handshakes tell their mean, older ones fade with this time constant …
const HANDSHAKES: f64 = 5.0;
const HANDSHAKE_MEMORY: f64 = 5.0;
/// … and this is late: in seconds, and compared with the other backends.
const LATE: f64 = 0.2;
const LATE_COMPARED: f64 = 10.0;
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// After so long without an ejection a backend is as good as new.
const QUIET: Duration = LONGEST;

/// Why a backend is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its connections were refused, timed out or were given up.
    Failures { failed: u64 },
    /// It does not answer, and other backends of the service do.
    Silent { unanswered: u64 },
    /// Its handshakes take far longer than those of other backends.
    Late { handshake: Duration },
}

/// A backend that is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub reason: Reason,
    pub since: Duration,
    pub until: Duration,
    /// How many times it was ejected without a quiet while in between.
    pub times: u32,
}

/// The backends that are out now.
pub type Ejected = BTreeMap<Target, Ejection>;

/// What the other backends of a service did meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peers {
    pub answered: u64,
    /// Mean time of their handshakes lately, in seconds.
    pub handshake: Option<f64>,
}

/// What is remembered of a backend.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    failed: u64,
    unanswered: u64,
    silent_since: Option<Duration>,
    handshakes: f64,
    handshake_s: f64,
    times: u32,
    until: Duration,
}

/// Watches backends and says which are out.
#[derive(Clone, Debug, Default)]
pub struct Ejector {
    health: BTreeMap<Target, Health>,
    out: Ejected,
}

impl Ejector {
    /// The backends that are out.
    pub fn out(&self) -> &Ejected {
        &self.out
    }

    /// Mean time of a backend's handshakes lately, in seconds.
    pub fn handshake(&self, target: &Target) -> Option<f64> {
        let health = self.health.get(target)?;
        (health.handshakes >= HANDSHAKES).then(|| health.handshake_s / health.handshakes)
    }

    /// Lets those back whose time is over, and says which.
    pub fn restore(&mut self, now: Duration) -> Vec<Target> {
        let over: Vec<Target> = self
            .out
            .iter()
            .filter(|(_, ejection)| ejection.until <= now)
            .map(|(target, _)| *target)
            .collect();
        for target in &over {
            self.out.remove(target);
        }
        over
    }

    /// What came of an offered backend's connections in the last `dt` seconds. Returns whether it is out from now on.
    pub fn observe(
        &mut self,
        target: Target,
        seen: &Counters,
        peers: &Peers,
        now: Duration,
        dt: f64,
    ) -> bool {
        if self.out.contains_key(&target) {
            return false;
        }
        let health = self.health.entry(target).or_default();
        health.observe(seen, now, dt);
        let Some(reason) = health.verdict(peers, now) else {
            return false;
        };
        let times = health.times + 1;
        let long = FIRST.saturating_mul(1 << (times - 1).min(16)).min(LONGEST);
        let until = now + long;
        // What was counted led to this; afterwards it begins anew.
        *health = Health {
            times,
            until,
            ..Health::default()
        };
        let ejection = Ejection {
            reason,
            since: now,
            until,
            times,
        };
        self.out.insert(target, ejection);
        true
    }

    /// Forgets the backends that are not `kept`, and that were not ejected lately.
    pub fn forget(&mut self, now: Duration, kept: impl Fn(&Target) -> bool) {
        self.health.retain(|target, health| {
            kept(target) || (health.times > 0 && now < health.until + QUIET)
        });
    }
}

impl Health {
    fn observe(&mut self, seen: &Counters, now: Duration, dt: f64) {
        if self.times > 0 && now >= self.until + QUIET {
            self.times = 0;
        }
        if seen.failures > 0 && seen.failures >= seen.handshakes {
            self.failed += seen.failures;
        } else if seen.handshakes > 0 {
            self.failed = 0;
        }
        if seen.handshakes > 0 || seen.failures > 0 {
            (self.unanswered, self.silent_since) = (0, None);
        } else if seen.opens > 0 {
            self.unanswered += seen.opens;
            self.silent_since.get_or_insert(now);
        }
        let keep = (-dt / HANDSHAKE_MEMORY).exp();
        self.handshakes = self.handshakes * keep + seen.handshakes as f64;
        self.handshake_s = self.handshake_s * keep + seen.handshake_ns as f64 / 1e9;
    }

    fn verdict(&self, peers: &Peers, now: Duration) -> Option<Reason> {
        let silent = self
            .silent_since
            .is_some_and(|since| now - since >= SILENCE);
        let mean = self.handshake_s / self.handshakes.max(1.0);
        if self.failed >= FAILURES {
            Some(Reason::Failures {
                failed: self.failed,
            })
        } else if silent && self.unanswered >= UNANSWERED && peers.answered > 0 {
            Some(Reason::Silent {
                unanswered: self.unanswered,
            })
        } else if self.handshakes >= HANDSHAKES
            && mean > LATE
            && peers
                .handshake
                .is_some_and(|peers| mean > LATE_COMPARED * peers)
        {
            Some(Reason::Late {
                handshake: Duration::from_secs_f64(mean),
            })
        } else {
            None
        }
    }
}

/// Takes the backends that are out from the offered ones, as if they were not ready: they keep their connections. Never
/// more than half of the ready ones; those that were out first stay out.
pub fn apply(frontend: &mut Frontend, ejected: &Ejected) {
    let ready = |class: Class| class < Class::Terminating;
    let backends = &mut frontend.backends;
    let most = backends
        .iter()
        .filter(|backend| ready(backend.class))
        .count()
        / 2;
    let mut out: Vec<_> = backends
        .iter_mut()
        .filter(|backend| ready(backend.class))
        .filter_map(|backend| Some((ejected.get(&backend.target)?, backend)))
        .collect();
    out.sort_by_key(|(ejection, backend)| (ejection.since, backend.target));
    if out.is_empty() {
        return;
    }
    for (_, backend) in out.into_iter().take(most) {
        backend.class = Class::Draining;
    }
    backends.sort_unstable();
}

#[cfg(test)]
#[path = "ejection_tests.rs"]
mod tests;
