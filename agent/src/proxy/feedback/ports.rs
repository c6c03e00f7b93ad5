//! The service ports that have traffic: from what is seen of their backends to shares and ejections. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use agent_ebpf::abi::{BackendId, SHARE_ONE, ServiceKey, TCP};

use super::super::policy::{Frontend, Preference, Target};
use super::controller::{Controller, Inputs, MOST};
use super::ejection::{self, Ejected, Ejector, Peers};
use super::gauge::Gauge;
use super::lifetimes::{Lifetimes, Memory, slowness};
use super::signals::{Counters, Load};

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

/// One ready backend of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: BackendId,
    pub target: Target,
}

/// The ready backends of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub key: ServiceKey,
    pub preference: Preference,
    pub local: Vec<Member>,
    pub others: Vec<Member>,
}

impl Shape {
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.local.iter().chain(&self.others)
    }

    /// Whether there is a share to find.
    pub fn is_steered(&self) -> bool {
        self.preference == Preference::Node && !(self.local.is_empty() || self.others.is_empty())
    }
}

/// The backends as they are.
pub trait Look {
    fn counters(&mut self, backend: BackendId) -> Counters;
    /// How a backend on this node is.
    fn load(&mut self, target: &Target) -> Load;
}

/// What is remembered of one port.
#[derive(Clone, Debug)]
struct Port {
    controller: Controller,
    elsewhere: Lifetimes,
    /// The share that the maps should hold.
    written: f64,
    inputs: Option<Inputs>,
    last_open: Duration,
}

/// Everything that is remembered from look to look.
#[derive(Clone, Debug, Default)]
pub struct Feedback {
    ports: BTreeMap<ServiceKey, Port>,
    backends: HashMap<BackendId, Gauge>,
    ejector: Ejector,
}

/// What a look changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Ports whose share is to be written.
    pub shares: BTreeSet<ServiceKey>,
    /// Backends that are out from now on, or back.
    pub ejections: BTreeSet<Target>,
}

impl Feedback {
    /// One look at the ports with traffic, `since_last` after the one before.
    pub fn step(
        &mut self,
        shapes: &[Shape],
        look: &mut impl Look,
        now: Duration,
        since_last: Duration,
    ) -> Changes {
        let dt = since_last.as_secs_f64().max(0.001);
        let mut changes = Changes::default();
        changes.ejections.extend(self.ejector.restore(now));
        self.forget(shapes, now);
        self.see(shapes, look, dt);
        let mut judged = BTreeSet::new();
        for shape in shapes {
            for target in self.judge(shape, &mut judged, now, dt) {
                changes.ejections.insert(target);
            }
            if self.steer(shape, now, dt) {
                changes.shares.insert(shape.key);
            }
        }
        changes
    }

    /// Makes a frontend as it should be: without the backends that are out, with the share that was found.
    pub fn apply(&self, frontend: &mut Frontend) {
        ejection::apply(frontend, self.ejector.out());
        frontend.node_share = (self.share(&frontend.key) * f64::from(SHARE_ONE)) as u32;
    }

    /// The share of a port that should be in the maps.
    pub fn share(&self, key: &ServiceKey) -> f64 {
        self.ports.get(key).map_or(MOST, |port| port.written)
    }

    /// What moved the share of a port at the last look.
    pub fn inputs(&self, key: &ServiceKey) -> Option<Inputs> {
        self.ports.get(key)?.inputs
    }

    /// The backends that are out.
    pub fn ejected(&self) -> &Ejected {
        self.ejector.out()
    }

    /// Whether a port needs no look until it has traffic again.
    pub fn is_quiet(&self, shape: &Shape, now: Duration) -> bool {
        let port = self.ports.get(&shape.key);
        port.is_none_or(|port| now >= port.last_open + QUIET && port.written == MOST)
            && !shape
                .members()
                .any(|member| self.ejector.out().contains_key(&member.target))
    }

    fn forget(&mut self, shapes: &[Shape], now: Duration) {
        let keys: HashSet<&ServiceKey> = shapes.iter().map(|shape| &shape.key).collect();
        self.ports.retain(|key, _| keys.contains(key));
        let members = || shapes.iter().flat_map(Shape::members);
        let ids: HashSet<BackendId> = members().map(|member| member.id).collect();
        self.backends.retain(|id, _| ids.contains(id));
        let targets: HashSet<Target> = members().map(|member| member.target).collect();
        self.ejector.forget(now, |target| targets.contains(target));
    }

    fn see(&mut self, shapes: &[Shape], look: &mut impl Look, dt: f64) {
        let mut counted = BTreeSet::new();
        let mut weighed = BTreeSet::new();
        for shape in shapes {
            for member in shape.members() {
                if counted.insert(member.id) {
                    let gauge = self.backends.entry(member.id).or_default();
                    gauge.count(look.counters(member.id), dt);
                }
            }
            for member in shape.local.iter().filter(|_| shape.is_steered()) {
                if weighed.insert(member.id) {
                    let gauge = self.backends.entry(member.id).or_default();
                    gauge.weigh(&look.load(&member.target), dt);
                }
            }
        }
    }

    /// Ejects backends of a port; each is judged once a look.
    fn judge(
        &mut self,
        shape: &Shape,
        judged: &mut BTreeSet<Target>,
        now: Duration,
        dt: f64,
    ) -> Vec<Target> {
        let tcp = shape
            .members()
            .filter(|member| member.target.protocol == TCP);
        let members: Vec<(Target, Counters)> = tcp
            .map(|member| (member.target, self.backends[&member.id].seen))
            .collect();
        let all: u64 = members.iter().map(|(_, seen)| seen.handshakes).sum();
        let means: Vec<Option<f64>> = members
            .iter()
            .map(|(target, _)| self.ejector.handshake(target))
            .collect();
        let sum: f64 = means.iter().flatten().sum();
        let known = means.iter().flatten().count();
        let mut out = Vec::new();
        for ((target, seen), mean) in members.iter().zip(&means) {
            if !judged.insert(*target) {
                continue;
            }
            let others = known - usize::from(mean.is_some());
            let peers = Peers {
                answered: all - seen.handshakes,
                handshake: (others > 0).then(|| (sum - mean.unwrap_or(0.0)) / others as f64),
            };
            if members.len() > 1 && self.ejector.observe(*target, seen, &peers, now, dt) {
                out.push(*target);
            }
        }
        out
    }

    /// Moves the share of a port. Returns whether it is to be written.
    fn steer(&mut self, shape: &Shape, now: Duration, dt: f64) -> bool {
        let port = self.ports.entry(shape.key).or_insert_with(|| Port {
            controller: Controller::default(),
            elsewhere: Lifetimes::default(),
            written: MOST,
            inputs: None,
            last_open: now,
        });
        let gauge = |member: &Member| &self.backends[&member.id];
        if shape.members().any(|member| gauge(member).seen.opens > 0) {
            port.last_open = now;
        }
        if !shape.is_steered() {
            port.inputs = None;
            return false;
        }
        let (mut ended, mut active) = (0, 0);
        for gauge in shape.others.iter().map(gauge) {
            ended += gauge.seen.closes;
            active += gauge.active();
        }
        port.elsewhere.observe(ended, active, dt, &ELSEWHERE);
        let local = shape.local.iter().map(gauge);
        let slowest = local
            .clone()
            .map(|here| slowness(&here.lifetimes, &port.elsewhere, dt))
            .fold(0.0, f64::max);
        let inputs = Inputs {
            slowness: slowest,
            strain: local
                .clone()
                .filter_map(Gauge::strain)
                .max_by(|a, b| a.pressure().total_cmp(&b.pressure())),
            even: shape.local.len() as f64 / shape.members().count() as f64,
            lifetime: port.elsewhere.mean(),
        };
        port.inputs = Some(inputs);
        let share = port.controller.step(&inputs, dt);
        let changed = is_noticeable(port.written, share);
        if changed {
            port.written = share;
        }
        changed
    }
}

fn is_noticeable(before: f64, now: f64) -> bool {
    let change = (now - before).abs();
    change >= NOTICEABLE || change >= NOTICEABLE_PART * before || (now != before && now == MOST)
}
