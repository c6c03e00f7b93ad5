//! The feedback against queues: a discrete-event simulation of a service with one backend on each node, whose clients
//! may all be on one of them. Compares it with pure local, pure random and least connections. Deterministic.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use agent_ebpf::abi::{Address, BackendId, SHARE_ONE, Scope, ServiceEntry, ServiceKey, TCP};
use agent_ebpf::select::draw;

use super::super::policy::{AddressKind, Backend, Class, Frontend, Preference, Target};
use super::{Counters, Feedback, Load, Look, MOST, Member, Shape};

mod assertions;
mod outcome;
mod plot;

use outcome::{Done, Outcome};

/// Between two looks of the feedback, in seconds.
const TICK: f64 = 0.1;
/// What a connection to another node takes longer, in seconds.
const AWAY: f64 = 0.000_2;

/// Who decides where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    Local,
    Random,
    /// As few open connections of this node as possible.
    LeastConnections,
    Feedback,
}

/// A service with one backend on each node.
#[derive(Clone, Debug)]
struct Scenario {
    name: &'static str,
    /// New connections a second from each node's clients, as a Poisson process. Its length is the number of nodes.
    clients: Vec<f64>,
    /// Connections that a backend serves at once; the others wait, unseen by the kernel.
    workers: usize,
    /// Mean time that a connection takes, in seconds; exponential.
    service_time: f64,
    /// While it lasts, the first node's backend is slower by this factor.
    slow: Option<(Range<f64>, f64)>,
    /// While it lasts, the second node's backend refuses connections.
    refuses: Option<Range<f64>>,
    seconds: f64,
}

/// splitmix64: the same numbers everywhere and for ever, which the plot in the docs needs.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// An exponentially distributed time.
    fn time(&mut self, mean: f64) -> f64 {
        let unit = (self.bits() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - unit).ln() * mean
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival {
        node: usize,
    },
    Finish {
        node: usize,
        backend: usize,
        opened: u64,
    },
    Look {
        node: usize,
    },
}

/// A backend: connections that wait, and how many are served.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<(usize, u64)>,
    busy: usize,
}

/// One node's agent and clients.
struct Node {
    counters: Vec<Counters>,
    feedback: Feedback,
    /// Its own backend first, as in the table of the kernel.
    offered: Vec<usize>,
    share: f64,
}

struct World<'a> {
    scenario: &'a Scenario,
    strategy: Strategy,
    random: Random,
    /// Time in nanoseconds, then the order in which events were made.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    made: u64,
    now: u64,
    queues: Vec<Queue>,
    nodes: Vec<Node>,
    outcome: Outcome,
}

impl Look for &[Counters] {
    fn counters(&mut self, backend: BackendId) -> Counters {
        self[backend.0 as usize]
    }

    /// Nothing is known of cgroups and accept queues: what connections show must be enough.
    fn load(&mut self, _: &Target) -> Load {
        Load::default()
    }
}

impl Scenario {
    fn run(&self, strategy: Strategy) -> Outcome {
        let count = self.clients.len();
        let mut world = World {
            scenario: self,
            strategy,
            random: Random(1),
            events: BinaryHeap::new(),
            made: 0,
            now: 0,
            queues: (0..count).map(|_| Queue::default()).collect(),
            nodes: (0..count).map(|node| Node::new(node, count)).collect(),
            outcome: Outcome::default(),
        };
        for node in 0..count {
            world.next_arrival(node);
            world.after(TICK, Event::Look { node });
        }
        while let Some(Reverse((at, _, event))) = world.events.pop() {
            if at as f64 / 1e9 > self.seconds {
                break;
            }
            world.now = at;
            world.happen(event);
        }
        world.give_up();
        world.outcome
    }
}

impl Node {
    fn new(node: usize, count: usize) -> Self {
        let mut own = Self {
            counters: vec![Counters::default(); count],
            feedback: Feedback::default(),
            offered: Vec::new(),
            share: MOST,
        };
        own.apply(node);
        own
    }

    /// What the proxy does after a look: the share that was found, without the backends that are out.
    fn apply(&mut self, node: usize) {
        let mut frontend = frontend(node, self.counters.len());
        self.feedback.apply(&mut frontend);
        self.share = f64::from(frontend.node_share) / f64::from(SHARE_ONE);
        let offered = frontend.offered();
        self.offered = offered
            .map(|backend| usize::from(backend.target.port[1]))
            .collect();
    }
}

fn key() -> ServiceKey {
    ServiceKey {
        address: Address::v4([10, 96, 0, 1]),
        port: [0, 80],
        protocol: TCP,
        scope: Scope::CLUSTER,
    }
}

fn target(backend: usize) -> Target {
    Target {
        address: Address::v4([10, 244, 0, 1]),
        port: [0, backend as u8],
        protocol: TCP,
    }
}

fn frontend(node: usize, count: usize) -> Frontend {
    let class = |backend| match backend == node {
        true => Class::Local,
        false => Class::Rest,
    };
    let mut backends: Vec<Backend> = (0..count)
        .map(|backend| Backend {
            class: class(backend),
            target: target(backend),
        })
        .collect();
    backends.sort_unstable();
    Frontend {
        key: key(),
        kind: AddressKind::ClusterIp,
        port_name: "".into(),
        preference: Preference::Node,
        affinity_timeout_s: 0,
        created: 0,
        node_share: (MOST * f64::from(SHARE_ONE)) as u32,
        source_ranges: None,
        direct_return: false,
        backends,
    }
}

impl World<'_> {
    fn seconds(&self) -> f64 {
        self.now as f64 / 1e9
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.made += 1;
        let at = self.now + (seconds * 1e9) as u64;
        self.events.push(Reverse((at, self.made, event)));
    }

    fn next_arrival(&mut self, node: usize) {
        let rate = self.scenario.clients[node];
        if rate > 0.0 {
            let wait = self.random.time(1.0 / rate);
            self.after(wait, Event::Arrival { node });
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival { node } => {
                self.next_arrival(node);
                self.arrive(node);
            }
            Event::Finish {
                node,
                backend,
                opened,
            } => self.finish(node, backend, opened),
            Event::Look { node } => {
                self.after(TICK, Event::Look { node });
                self.look(node);
            }
        }
    }

    fn arrive(&mut self, node: usize) {
        let backend = self.choose(node);
        let now = self.seconds();
        let refuses = self.scenario.refuses.as_ref();
        let counters = &mut self.nodes[node].counters[backend];
        counters.opens += 1;
        if backend == 1 && refuses.is_some_and(|when| when.contains(&now)) {
            counters.failures += 1;
            counters.closes += 1;
            self.outcome.done.push(Done {
                at: now,
                latency: None,
                local: backend == node,
            });
            return;
        }
        counters.handshakes += 1;
        counters.handshake_ns += 100_000;
        self.queues[backend].waiting.push_back((node, self.now));
        self.serve(backend);
    }

    /// Takes connections from the queue while workers are free.
    fn serve(&mut self, backend: usize) {
        let Scenario {
            workers,
            service_time,
            slow,
            ..
        } = self.scenario;
        let now = self.seconds();
        let factor = match slow {
            Some((when, factor)) if backend == 0 && when.contains(&now) => *factor,
            _ => 1.0,
        };
        while self.queues[backend].busy < *workers
            && let Some((node, opened)) = self.queues[backend].waiting.pop_front()
        {
            self.queues[backend].busy += 1;
            let away = if node == backend { 0.0 } else { AWAY };
            let time = self.random.time(service_time * factor) + away;
            let event = Event::Finish {
                node,
                backend,
                opened,
            };
            self.after(time, event);
        }
    }

    fn finish(&mut self, node: usize, backend: usize, opened: u64) {
        self.queues[backend].busy -= 1;
        self.nodes[node].counters[backend].closes += 1;
        self.outcome.done.push(Done {
            at: opened as f64 / 1e9,
            latency: Some((self.now - opened) as f64 / 1e9),
            local: node == backend,
        });
        self.serve(backend);
    }

    /// What still waits at the end took so long at least.
    fn give_up(&mut self) {
        for (backend, queue) in self.queues.iter().enumerate() {
            let waiting = queue.waiting.iter();
            self.outcome.done.extend(waiting.map(|(node, opened)| Done {
                at: *opened as f64 / 1e9,
                latency: Some((self.now - opened) as f64 / 1e9),
                local: *node == backend,
            }));
        }
    }

    fn choose(&mut self, node: usize) -> usize {
        let count = self.queues.len();
        match self.strategy {
            Strategy::Local => node,
            Strategy::Random => self.random.below(count),
            Strategy::LeastConnections => {
                let first = self.random.below(count);
                let counters = &self.nodes[node].counters;
                let all = (0..count).map(|i| (first + i) % count);
                all.min_by_key(|backend| counters[*backend].active())
                    .unwrap_or(node)
            }
            Strategy::Feedback => {
                let bits = self.random.bits();
                let Node { offered, share, .. } = &self.nodes[node];
                let entry = ServiceEntry {
                    service_id: 1,
                    generation: 1,
                    local: u32::from(offered.first() == Some(&node)),
                    zone: 0,
                    ready: offered.len() as u32,
                    terminating: 0,
                    flags: 0,
                    affinity_timeout_s: 0,
                    local_share: (share * f64::from(SHARE_ONE)) as u32,
                };
                offered[draw(&entry, bits).unwrap() as usize]
            }
        }
    }

    fn look(&mut self, node: usize) {
        if self.strategy != Strategy::Feedback {
            return;
        }
        let now = Duration::from_nanos(self.now);
        let own = &mut self.nodes[node];
        let member = |backend: &usize| Member {
            id: BackendId(*backend as u32),
            target: target(*backend),
        };
        let (local, others): (Vec<usize>, Vec<usize>) =
            own.offered.iter().partition(|backend| **backend == node);
        let shape = Shape {
            preference: Preference::Node,
            local: local.iter().map(member).collect(),
            others: others.iter().map(member).collect(),
            resting: Vec::new(),
        };
        own.feedback.set(key(), shape, MOST, now);
        let every = Duration::from_secs_f64(TICK);
        own.feedback.step(&mut own.counters.as_slice(), now, every);
        own.apply(node);
        if node == 0 {
            self.outcome.shares.push(own.share);
        }
    }
}
