//! The service ports that have traffic: from what is seen of their backends to shares and ejections. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use agent_ebpf::abi::{BackendId, SHARE_ONE, ServiceKey, TCP};

use super::super::policy::{Frontend, Preference, Target};
use super::controller::{Controller, Inputs, MOST};
use super::ejection::{self, Ejected, Ejector, Peers};
use super::gauge::{Gauge, Seen};
use super::lifetimes::{Lifetimes, Memory, slowness};
use super::signals::{Counters, Load, Reading};

/// A share is written when it differs by so much from the one in the maps …
const NOTICEABLE: f64 = 0.02;
/// … or by so much of it, or has come to its end.
const NOTICEABLE_PART: f64 = 0.1;
/// A port without a new connection for so long is no longer looked at, once it is as if nothing had been.
const QUIET: Duration = Duration::from_secs(10);
/// A hundredth of the traffic, or less, has to show how the other backends are.
const ELSEWHERE: Memory = Memory {
    fades: 2.0,
    enough: 32.0,
    longest: 60.0,
};
/// So many of a port's other backends are looked at at once; then it is the next ones' turn.
const AT_ONCE: usize = 64;
/// The load of about so many local backends is looked at at once, over all ports: that takes a few files each.
const LOADS_AT_ONCE: usize = 16;

/// One ready backend of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: BackendId,
    pub target: Target,
}

/// The backends of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub preference: Preference,
    pub local: Vec<Member>,
    pub others: Vec<Member>,
    /// Those in the table that are not offered, and may be again.
    pub resting: Vec<BackendId>,
}

impl Shape {
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.local.iter().chain(&self.others)
    }

    /// Whether there is a share to find. Not for UDP: an unconnected socket draws by the share at each datagram, and would
    /// change its backend with it.
    pub(super) fn is_steered(&self) -> bool {
        let local = self.local.first();
        self.preference == Preference::Node
            && local.is_some_and(|member| member.target.protocol == TCP)
            && !self.others.is_empty()
    }
}

/// The backends as they are.
pub trait Look {
    fn counters(&mut self, backend: BackendId) -> Counters;

    /// How a backend on this node is.
    fn load(&mut self, target: &Target) -> Load;

    /// All has been looked at for now: what was not asked for will not be asked for soon.
    fn rest(&mut self) {}
}

/// What is remembered of one port.
#[derive(Clone, Debug)]
struct Port {
    shape: Shape,
    gauges: HashMap<BackendId, Gauge>,
    elsewhere: Lifetimes,
    /// The first of the other backends that is looked at next.
    next: usize,
    controller: Controller,
    /// The share that the maps should hold.
    written: f64,
    inputs: Option<Inputs>,
    last_open: Duration,
}

/// Everything that is remembered from look to look.
#[derive(Clone, Debug, Default)]
pub struct Feedback {
    ports: BTreeMap<ServiceKey, Port>,
    ejector: Ejector,
    looks: u32,
}

/// What a look changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Ports whose share is to be written.
    pub shares: BTreeSet<ServiceKey>,
    /// Backends that are out from now on.
    pub ejected: BTreeSet<Target>,
    /// Backends that are back.
    pub restored: BTreeSet<Target>,
}

/// The local backends take turns, by their ids.
struct Turn {
    look: u32,
    of: u32,
}

impl Turn {
    fn has(&self, id: BackendId) -> bool {
        self.look.wrapping_add(id.0).is_multiple_of(self.of)
    }
}

impl Feedback {
    /// Looks at a port from now on; its backends are these. It starts with `share`.
    pub fn set(&mut self, key: ServiceKey, shape: Shape, share: f64, now: Duration) {
        let port = self.ports.entry(key).or_insert_with(|| Port {
            shape: shape.clone(),
            gauges: HashMap::new(),
            elsewhere: Lifetimes::default(),
            next: 0,
            controller: Controller::starting_at(share),
            written: share,
            inputs: None,
            last_open: now,
        });
        let offered = shape.members().map(|member| member.id);
        let ids: HashSet<BackendId> = offered.chain(shape.resting.iter().copied()).collect();
        port.gauges.retain(|id, _| ids.contains(id));
        port.shape = shape;
        // What happens to the connections of one that rests says nothing of how it is when it is back.
        for id in &port.shape.resting {
            if let Some(gauge) = port.gauges.get_mut(id) {
                gauge.forget();
            }
        }
    }

    /// Looks at it no more.
    pub fn remove(&mut self, key: &ServiceKey) {
        self.ports.remove(key);
    }

    /// The ports that are looked at.
    pub fn ports(&self) -> impl Iterator<Item = (&ServiceKey, &Shape)> {
        self.ports.iter().map(|(key, port)| (key, &port.shape))
    }

    /// One look, `since_last` after the one before.
    pub fn step(&mut self, look: &mut impl Look, now: Duration, since_last: Duration) -> Changes {
        let mut changes = Changes::default();
        changes.restored.extend(self.ejector.restore(now));
        let mut judged = BTreeSet::new();
        let turn = self.turn();
        for (key, port) in &mut self.ports {
            let seen = port.see(look, now);
            for target in judge(&mut self.ejector, &seen, &mut judged, now) {
                changes.ejected.insert(target);
            }
            if port.steer(&seen, look, &turn, now, since_last.as_secs_f64()) {
                changes.shares.insert(*key);
            }
        }
        let members = self.ports.values().flat_map(|port| port.shape.members());
        let kept: HashSet<Target> = members.map(|member| member.target).collect();
        self.ejector.forget(now, |target| kept.contains(target));
        look.rest();
        changes
    }

    /// Whose load is looked at this time.
    fn turn(&mut self) -> Turn {
        self.looks = self.looks.wrapping_add(1);
        let steered = self.ports.values().filter(|port| port.shape.is_steered());
        let all: usize = steered.map(|port| port.shape.local.len()).sum();
        Turn {
            look: self.looks,
            of: u32::try_from(all.div_ceil(LOADS_AT_ONCE).max(1)).unwrap_or(u32::MAX),
        }
    }

    /// Makes a frontend as it should be: without the backends that are out, with the share that was found.
    pub fn apply(&self, frontend: &mut Frontend) {
        ejection::apply(frontend, self.ejector.out());
        if let Some(share) = self.share(&frontend.key).filter(|share| *share < MOST) {
            frontend.node_share = (share * f64::from(SHARE_ONE)) as u32;
        }
    }

    /// The share of a port that should be in the maps, if it is looked at.
    pub fn share(&self, key: &ServiceKey) -> Option<f64> {
        Some(self.ports.get(key)?.written)
    }

    /// What moved the share of a port at the last look.
    pub fn inputs(&self, key: &ServiceKey) -> Option<Inputs> {
        self.ports.get(key)?.inputs
    }

    /// The backends that are out.
    pub fn ejected(&self) -> &Ejected {
        self.ejector.out()
    }

    /// Ports that need no look until they have traffic again.
    pub fn quiet(&self, now: Duration) -> Vec<ServiceKey> {
        let quiet = |port: &Port| {
            let still = now >= port.last_open + QUIET;
            still && (port.written == MOST || !port.shape.is_steered())
        };
        let ports = self.ports.iter();
        ports
            .filter(|(_, port)| quiet(port))
            .map(|(key, _)| *key)
            .collect()
    }
}

impl Port {
    /// Looks at the counters of the local backends, and of as many others as at once. The local ones come first.
    fn see(&mut self, look: &mut impl Look, now: Duration) -> Vec<(Member, Seen)> {
        let Shape { local, others, .. } = &self.shape;
        let some = others.len().min(AT_ONCE);
        let turn = others.iter().cycle().skip(self.next).take(some);
        let mut seen = Vec::with_capacity(local.len() + some);
        for member in local.iter().chain(turn) {
            let gauge = self.gauges.entry(member.id).or_default();
            seen.push((*member, gauge.count(look.counters(member.id), now)));
        }
        self.next = (self.next + some) % others.len().max(1);
        if seen.iter().any(|(_, seen)| seen.counted.opens > 0) {
            self.last_open = now;
        }
        seen
    }

    /// Moves the share. Returns whether it is to be written.
    fn steer(
        &mut self,
        seen: &[(Member, Seen)],
        look: &mut impl Look,
        turn: &Turn,
        now: Duration,
        dt: f64,
    ) -> bool {
        if !self.shape.is_steered() || dt <= 0.0 {
            self.inputs = None;
            return false;
        }
        let (local, others) = seen.split_at(self.shape.local.len());
        let ended = others.iter().map(|(_, seen)| seen.counted.closes).sum();
        let open = others
            .iter()
            .map(|(_, seen)| seen.active as f64 * seen.dt)
            .sum();
        self.elsewhere.observe(ended, open, dt, &ELSEWHERE);
        let (mut slowest, mut strain) = (0.0_f64, None::<Reading>);
        for (member, seen) in local {
            let gauge = self.gauges.entry(member.id).or_default();
            let here = gauge.lifetimes(seen);
            slowest = slowest.max(slowness(here, &self.elsewhere, dt));
            if turn.has(member.id) {
                gauge.weigh(&look.load(&member.target), now);
            }
            let both = strain.into_iter().chain(gauge.strain());
            strain = both.max_by(|a, b| a.pressure().total_cmp(&b.pressure()));
        }
        let all = self.shape.local.len() + self.shape.others.len();
        let inputs = Inputs {
            slowness: slowest,
            strain,
            even: self.shape.local.len() as f64 / all as f64,
            lifetime: self.elsewhere.mean(),
        };
        self.inputs = Some(inputs);
        let share = self.controller.step(&inputs, dt);
        let changed = is_noticeable(self.written, share);
        if changed {
            self.written = share;
        }
        changed
    }
}

/// Ejects backends of a port that fail; each is judged once a look.
fn judge(
    ejector: &mut Ejector,
    seen: &[(Member, Seen)],
    judged: &mut BTreeSet<Target>,
    now: Duration,
) -> Vec<Target> {
    let tcp = seen
        .iter()
        .filter(|(member, _)| member.target.protocol == TCP);
    let all: Vec<(Target, &Seen, Option<f64>)> = tcp
        .map(|(member, seen)| (member.target, seen, ejector.handshake(&member.target)))
        .collect();
    if all.len() < 2 {
        return Vec::new();
    }
    let answered: u64 = all.iter().map(|(_, seen, _)| seen.counted.handshakes).sum();
    let known = all.iter().filter_map(|(_, _, handshake)| *handshake);
    let (count, sum) = known.fold((0, 0.0), |(count, sum), handshake| {
        (count + 1, sum + handshake)
    });
    let mut out = Vec::new();
    for (target, seen, handshake) in &all {
        let others = count - i32::from(handshake.is_some());
        let peers = Peers {
            answered: answered - seen.counted.handshakes,
            handshake: (others > 0).then(|| (sum - handshake.unwrap_or(0.0)) / f64::from(others)),
        };
        if judged.insert(*target) && ejector.observe(*target, &seen.counted, &peers, now, seen.dt) {
            out.push(*target);
        }
    }
    out
}

fn is_noticeable(before: f64, now: f64) -> bool {
    let change = (now - before).abs();
    change >= NOTICEABLE || change >= NOTICEABLE_PART * before || (change > 0.0 && now == MOST)
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
