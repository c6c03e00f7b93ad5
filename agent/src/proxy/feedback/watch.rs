//! Which service ports are looked at: those that have traffic, and no others. Pure.
//!
//! Counters of ports without traffic are glanced at in turn, so many at a tick however many services there are.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use agent_ebpf::abi::{SHARE_ONE, Scope, ServiceKey};

use super::super::live::Live;
use super::super::policy::{Frontend, Preference, Target};
use super::super::state::LbState;
use super::controller::MOST;
use super::ports::{Changes, Feedback, Look, Member, Shape};
use crate::cluster::ObjectKey;

/// Between two looks while there is traffic. The limits on CPU time count in periods of this length.
pub const EVERY: Duration = Duration::from_millis(100);
/// Between two glances while there is none.
pub const IDLE: Duration = Duration::from_millis(250);
/// So many counters are glanced at in the time of [`EVERY`] …
const GLANCES: usize = 256;
/// … and at most so many of one port. The local backends come first.
const OF_ONE: usize = 32;

/// The feedback, and what has traffic.
#[derive(Debug, Default)]
pub struct Watch {
    feedback: Feedback,
    /// The tables that the ports' shapes were made of.
    tables: BTreeMap<ServiceKey, (u32, Preference)>,
    /// Ports that are still to be glanced at in this round.
    turn: VecDeque<ServiceKey>,
    /// What a port's counters stood at then.
    opens: HashMap<ServiceKey, u64>,
    /// Services that were written without the backends that are out.
    without: BTreeMap<Target, BTreeSet<ObjectKey>>,
    now: Duration,
}

impl Watch {
    /// Goes on with the shares that an earlier run found.
    pub fn adopt(&mut self, state: &LbState) {
        for (key, live) in state.frontends() {
            let share = f64::from(live.entry.local_share) / f64::from(SHARE_ONE);
            if is_followed(key)
                && live.preference == Preference::Node
                && share < MOST
                && let Some(shape) = shape(state, live)
                && shape.is_steered()
            {
                self.tables
                    .insert(*key, (live.entry.generation, live.preference));
                self.feedback.set(*key, shape, share, self.now);
            }
        }
    }

    /// When to look again after a look.
    pub fn pause(&self) -> Duration {
        match self.tables.is_empty() && self.feedback.ejected().is_empty() {
            true => IDLE,
            false => EVERY,
        }
    }

    /// One look, at the time `now` since the start. Gives the services that are to be written anew.
    pub fn tick(
        &mut self,
        state: &LbState,
        look: &mut impl Look,
        now: Duration,
    ) -> BTreeSet<ObjectKey> {
        let since_last = now.saturating_sub(self.now);
        self.now = now;
        self.glance(state, look, since_last);
        self.follow(state);
        let changes = self.feedback.step(look, now, since_last);
        for key in self.feedback.quiet(now) {
            self.stop(&key);
            // It is watched again as soon as a glance finds another number there.
            if let Some(live) = state.frontend(&key) {
                self.opens.insert(key, opens(live, look));
            }
        }
        self.owners(state, &changes)
    }

    /// Makes a frontend of a service as it should be.
    pub fn apply(&mut self, owner: &ObjectKey, frontend: &mut Frontend) {
        if !is_followed(&frontend.key) {
            return;
        }
        let ejected = self.feedback.ejected();
        for backend in &frontend.backends {
            if ejected.contains_key(&backend.target) {
                let services = self.without.entry(backend.target).or_default();
                services.insert(owner.clone());
            }
        }
        self.feedback.apply(frontend);
    }

    /// What is remembered, and when the last look was.
    pub fn seen(&self) -> (&Feedback, Duration) {
        (&self.feedback, self.now)
    }

    /// Finds ports that have traffic now.
    fn glance(&mut self, state: &LbState, look: &mut impl Look, since_last: Duration) {
        let ticks = since_last.as_secs_f64() / EVERY.as_secs_f64();
        let mut left = (GLANCES as f64 * ticks.clamp(1.0, 10.0)) as usize;
        if self.turn.is_empty() {
            let keys = state.frontends().map(|(key, _)| *key);
            self.turn = keys.filter(is_followed).collect();
            self.opens.retain(|key, _| state.frontend(key).is_some());
        }
        while left > 0
            && let Some(key) = self.turn.pop_front()
        {
            left -= 1;
            let Some(live) = state.frontend(&key) else {
                continue;
            };
            // One backend can be neither relieved nor ejected.
            if live.entry.ready < 2 || self.tables.contains_key(&key) {
                continue;
            }
            let opens = opens(live, look);
            left = left.saturating_sub(glances(live));
            if self
                .opens
                .insert(key, opens)
                .is_some_and(|before| before != opens)
            {
                self.start(state, key, live);
            }
        }
    }

    fn start(&mut self, state: &LbState, key: ServiceKey, live: &Live) {
        if let Some(shape) = shape(state, live) {
            self.tables
                .insert(key, (live.entry.generation, live.preference));
            self.opens.remove(&key);
            self.feedback.set(key, shape, MOST, self.now);
        }
    }

    fn stop(&mut self, key: &ServiceKey) {
        self.tables.remove(key);
        self.feedback.remove(key);
    }

    /// Takes note of tables that changed.
    fn follow(&mut self, state: &LbState) {
        let known: Vec<_> = self
            .tables
            .iter()
            .map(|(key, table)| (*key, *table))
            .collect();
        for (key, table) in known {
            match state.frontend(&key) {
                Some(live) if table == (live.entry.generation, live.preference) => {}
                Some(live) => self.start(state, key, live),
                None => self.stop(&key),
            }
        }
    }

    fn owners(&mut self, state: &LbState, changes: &Changes) -> BTreeSet<ObjectKey> {
        let owner = |key: &ServiceKey| state.frontend(key).and_then(|live| live.owner.clone());
        let mut owners: BTreeSet<ObjectKey> = changes.shares.iter().filter_map(owner).collect();
        for target in &changes.restored {
            owners.extend(self.without.remove(target).into_iter().flatten());
        }
        if !changes.ejected.is_empty() {
            let with = |shape: &Shape| {
                let mut targets = shape.local.iter().chain(&shape.others);
                targets.any(|member| changes.ejected.contains(&member.target))
            };
            let ports = self.feedback.ports().filter(|(_, shape)| with(shape));
            owners.extend(ports.filter_map(|(key, _)| owner(key)));
        }
        owners
    }
}

/// Clients outside are on no node, so no share of theirs stays on this one; and their Maglev tables say the same on every
/// node only while nothing that one node sees is in them.
fn is_followed(key: &ServiceKey) -> bool {
    key.scope != Scope::EXTERNAL
}

/// How many counters a glance at a port reads.
fn glances(live: &Live) -> usize {
    (live.entry.ready as usize).min(OF_ONE)
}

fn opens(live: &Live, look: &mut impl Look) -> u64 {
    let ids = live.slots.iter().take(glances(live));
    ids.map(|id| look.counters(*id).opens).sum()
}

/// The backends of a table.
fn shape(state: &LbState, live: &Live) -> Option<Shape> {
    let (ready, resting) = live.slots.split_at_checked(live.entry.ready as usize)?;
    let members: Option<Vec<Member>> = ready
        .iter()
        .map(|id| {
            let target = state.backend(*id)?;
            Some(Member { id: *id, target })
        })
        .collect();
    let mut local = members?;
    let others = local.split_off((live.entry.local as usize).min(local.len()));
    Some(Shape {
        preference: live.preference,
        local,
        others,
        resting: resting.to_vec(),
    })
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
