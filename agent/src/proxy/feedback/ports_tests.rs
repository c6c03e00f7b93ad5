use std::collections::HashMap;
use std::ops::Range;

use agent_ebpf::abi::{Address, Scope};

use super::super::signals::Signal;
use super::*;
use crate::dataplane::Backlog;
use crate::runtime::cpu::CpuCounters;

const TICK: Duration = Duration::from_millis(100);

/// Backends as a test wants them, and who was asked for.
#[derive(Default)]
struct Told {
    counters: HashMap<BackendId, Counters>,
    load: Load,
    counted: Vec<BackendId>,
    weighed: Vec<Target>,
}

impl Look for Told {
    fn counters(&mut self, backend: BackendId) -> Counters {
        self.counted.push(backend);
        self.counters.get(&backend).copied().unwrap_or_default()
    }

    fn load(&mut self, target: &Target) -> Load {
        self.weighed.push(*target);
        self.load
    }
}

fn member(id: u32) -> Member {
    let [_, _, high, low] = id.to_be_bytes();
    let target = Target {
        address: Address::v4([10, 244, high, low]),
        port: [0, 80],
        protocol: TCP,
    };
    let id = BackendId(id);
    Member { id, target }
}

fn key(last: u8) -> ServiceKey {
    ServiceKey {
        address: Address::v4([10, 96, 0, last]),
        port: [0, 80],
        protocol: TCP,
        scope: Scope::CLUSTER,
    }
}

fn shape(local: Range<u32>, others: Range<u32>) -> Shape {
    Shape {
        preference: Preference::Node,
        local: local.map(member).collect(),
        others: others.map(member).collect(),
        resting: Vec::new(),
    }
}

/// Looks so often, a tick apart, beginning with `first`.
fn look(feedback: &mut Feedback, told: &mut Told, looks: Range<u32>) -> Changes {
    let mut all = Changes::default();
    for look in looks {
        let changes = feedback.step(told, TICK * look, TICK);
        all.shares.extend(changes.shares);
        all.ejected.extend(changes.ejected);
    }
    all
}

#[test]
fn of_many_backends_some_are_looked_at_at_once_and_all_in_turn() {
    let mut feedback = Feedback::default();
    feedback.set(key(1), shape(0..2, 2..302), MOST, Duration::ZERO);
    let mut told = Told::default();
    for first in 1..6 {
        told.counted.clear();
        look(&mut feedback, &mut told, first..first + 1);
        assert_eq!(told.counted.len(), 2 + AT_ONCE);
        assert_eq!(
            told.counted[..2],
            [BackendId(0), BackendId(1)],
            "the local ones always"
        );
    }
    told.counted.clear();
    look(&mut feedback, &mut told, 6..11);
    told.counted.sort_unstable();
    told.counted.dedup();
    assert_eq!(told.counted.len(), 302);
}

#[test]
fn loads_are_looked_at_in_turn_over_all_ports() {
    let mut feedback = Feedback::default();
    for port in 0..100_u8 {
        let local = u32::from(port) * 10;
        feedback.set(
            key(port),
            shape(local..local + 1, local + 1..local + 3),
            MOST,
            Duration::ZERO,
        );
    }
    let mut told = Told::default();
    let mut most = 0;
    for first in 1..8 {
        let before = told.weighed.len();
        look(&mut feedback, &mut told, first..first + 1);
        most = most.max(told.weighed.len() - before);
    }
    assert!(most <= 2 * LOADS_AT_ONCE, "{most} at once");
    assert_eq!(told.weighed.len(), 100, "each once in seven looks");
}

#[test]
fn only_where_nothing_is_said_there_is_a_share_to_find() {
    for preference in [
        Preference::LocalOnly,
        Preference::SameNode,
        Preference::SameZone,
        Preference::Even,
    ] {
        let shape = Shape {
            preference,
            ..shape(0..1, 1..3)
        };
        let mut feedback = Feedback::default();
        feedback.set(key(1), shape, MOST, Duration::ZERO);
        let mut told = Told {
            load: full(),
            ..Told::default()
        };
        assert_eq!(look(&mut feedback, &mut told, 1..100), Changes::default());
        assert!(told.weighed.is_empty());
        assert_eq!(feedback.inputs(&key(1)), None);
    }
}

#[test]
fn the_share_of_a_udp_port_stays() {
    let mut shape = shape(0..1, 1..3);
    for member in shape.local.iter_mut().chain(&mut shape.others) {
        member.target.protocol = agent_ebpf::abi::UDP;
    }
    let mut feedback = Feedback::default();
    feedback.set(key(1), shape, MOST, Duration::ZERO);
    let mut told = Told {
        load: full(),
        ..Told::default()
    };
    assert_eq!(look(&mut feedback, &mut told, 1..100), Changes::default());
}

#[test]
fn what_happened_while_a_backend_was_out_is_not_held_against_it() {
    let mut feedback = Feedback::default();
    let mut told = Told::default();
    feedback.set(key(1), shape(0..2, 2..4), MOST, Duration::ZERO);
    look(&mut feedback, &mut told, 1..3);
    let resting = Shape {
        resting: vec![BackendId(0)],
        ..shape(1..2, 2..4)
    };
    feedback.set(key(1), resting, MOST, TICK * 3);
    look(&mut feedback, &mut told, 3..5);
    // Connections from before it went out fail late.
    let late = Counters {
        opens: 9,
        failures: 9,
        ..Counters::default()
    };
    told.counters.insert(BackendId(0), late);
    look(&mut feedback, &mut told, 5..7);
    feedback.set(key(1), shape(0..2, 2..4), MOST, TICK * 7);
    assert_eq!(look(&mut feedback, &mut told, 7..20).ejected, [].into());
}

/// An accept queue without room.
fn full() -> Load {
    Load {
        accept_queue: Some(Backlog {
            waiting: 128,
            room: 128,
        }),
        cpu: None,
    }
}

fn cpu(used_ms: u64, throttled: u64) -> Load {
    Load {
        accept_queue: None,
        cpu: Some(CpuCounters {
            used: Duration::from_millis(used_ms),
            limit: Some(0.5),
            throttled,
            period: TICK,
            ..CpuCounters::default()
        }),
    }
}

/// The load at each look.
type LoadAt = fn(u64) -> Load;

/// The share and the deciding signal of a port whose local backend has been like this for so long.
fn under(load: impl Fn(u64) -> Load, looks: u32) -> (f64, Signal) {
    let mut feedback = Feedback::default();
    feedback.set(key(1), shape(0..1, 1..4), MOST, Duration::ZERO);
    let mut told = Told::default();
    for at in 1..looks {
        told.load = load(u64::from(at));
        look(&mut feedback, &mut told, at..at + 1);
    }
    let worst = feedback.inputs(&key(1)).unwrap().worst();
    (feedback.share(&key(1)).unwrap(), worst.signal)
}

#[test]
fn each_strain_brings_the_share_down_to_an_even_spread() {
    // A limit of half a CPU is 50 ms in a period of 100 ms.
    let table: [(&str, LoadAt, Signal); 3] = [
        ("queue", |_| full(), Signal::AcceptQueue),
        ("use", |at| cpu(at * 50, 0), Signal::CpuUse),
        ("throttling", |at| cpu(at * 30, at), Signal::Throttling),
    ];
    for (what, load, signal) in table {
        let (share, decides) = under(load, 400);
        assert!((0.24..0.28).contains(&share), "{what}: {share}");
        assert_eq!(decides, signal);
    }
    assert_eq!(
        under(|at| cpu(at * 30, at / 10), 400).0,
        MOST,
        "a little throttling"
    );
    let restarted = |at: u64| cpu(at % 10 * 30, 0);
    assert_eq!(under(restarted, 400).0, MOST, "counters that begin anew");
}

#[test]
fn a_backend_of_two_services_is_judged_once() {
    let mut feedback = Feedback::default();
    for port in 1..3 {
        feedback.set(key(port), shape(0..1, 1..4), MOST, Duration::ZERO);
    }
    let mut told = Told::default();
    look(&mut feedback, &mut told, 1..2);
    told.counters.entry(BackendId(2)).or_default().failures = 2;
    assert!(look(&mut feedback, &mut told, 2..3).ejected.is_empty());
    told.counters.entry(BackendId(2)).or_default().failures = 3;
    let ejected = look(&mut feedback, &mut told, 3..4).ejected;
    assert_eq!(ejected, [member(2).target].into());
}
