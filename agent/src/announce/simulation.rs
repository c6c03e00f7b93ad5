//! Elections among simulated nodes: an API server with delays that fails, nodes that die, come back and are cut off, a
//! wire on which claims are heard. Time is simulated, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use proptest::prelude::*;

use super::election::{BEAT, Dispute, Election, Own, Sign};
use super::wanted::Who;
use super::{Addresses, Pulse};
use crate::cluster::Name;

const STEP: Duration = Duration::from_millis(20);
/// How often a node's Lease is renewed that announces nothing.
const SLOW: Duration = Duration::from_secs(10);

struct Node {
    name: Name,
    election: Election,
    mine: Addresses,
    pulse: Pulse,
    wrote: Option<Instant>,
    alive: bool,
    /// It reaches the API server.
    connected: bool,
    /// What its watch has yet to deliver.
    inbox: VecDeque<(Instant, Name, Sign)>,
    /// How long its watch takes.
    lag: Duration,
}

struct World {
    nodes: Vec<Node>,
    addresses: Vec<(IpAddr, Who)>,
    leases: BTreeMap<Name, Sign>,
    api: bool,
    now: Instant,
    writes: u64,
}

fn network() -> Vec<IpNet> {
    vec!["192.0.2.0/24".parse().unwrap()]
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

impl World {
    fn new(nodes: usize, addresses: u8) -> Self {
        let node = |n: usize| {
            let name: Name = format!("worker-{n}").into();
            Node {
                election: Election::new(name.clone()),
                name,
                mine: Addresses::new(),
                pulse: Pulse::default(),
                wrote: None,
                alive: true,
                connected: true,
                inbox: VecDeque::new(),
                lag: Duration::from_millis(20 + 37 * (n as u64 % 5)),
            }
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            addresses: (1..=addresses).map(|n| (ip(n), Who::Any)).collect(),
            leases: BTreeMap::new(),
            api: true,
            now: Instant::now(),
            writes: 0,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        for n in 0..self.nodes.len() {
            self.write(n);
        }
        let addresses: BTreeMap<IpAddr, &Who> =
            self.addresses.iter().map(|(ip, who)| (*ip, who)).collect();
        let mut claims = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| node.alive) {
            while node.connected
                && self.api
                && node
                    .inbox
                    .front()
                    .is_some_and(|(at, ..)| *at + node.lag <= now)
            {
                let (_, name, sign) = node.inbox.pop_front().unwrap();
                node.election.heard(&name, sign, now);
            }
            let networks = network();
            let own = Own {
                networks: &networks,
                fit: true,
            };
            let decision = node.election.decide(&addresses, own, now);
            claims.extend(
                decision
                    .mine
                    .difference(&node.mine)
                    .map(|it| (node.name.clone(), *it)),
            );
            node.mine = decision.mine;
            if node.pulse != decision.pulse {
                node.pulse = decision.pulse;
                node.wrote = None;
            }
        }
        for (by, address) in claims {
            for node in self.nodes.iter_mut().filter(|it| it.alive && it.name != by) {
                if node.mine.contains(&address)
                    && node.election.disputed(address, now) == Dispute::Yield
                {
                    node.mine.remove(&address);
                }
            }
        }
    }

    /// The node renews its Lease, if it is time.
    fn write(&mut self, n: usize) {
        let (now, node) = (self.now, &mut self.nodes[n]);
        let interval = if node.pulse.fast { BEAT } else { SLOW };
        let due = node
            .wrote
            .is_none_or(|at| now.duration_since(at) >= interval);
        if !(node.alive && node.connected && self.api && due) {
            return;
        }
        node.wrote = Some(now);
        self.writes += 1;
        let sign = Sign {
            renewed: Some(Timestamp::from_nanosecond(i128::from(self.writes)).unwrap()),
            networks: node.pulse.networks.clone(),
        };
        let name = node.name.clone();
        self.leases.insert(name.clone(), sign.clone());
        for node in &mut self.nodes {
            node.inbox.push_back((now, name.clone(), sign.clone()));
        }
    }

    fn kill(&mut self, n: usize) {
        self.nodes[n].alive = false;
        self.nodes[n].mine.clear();
    }

    /// A new agent on the node, that knows nothing.
    fn restart(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        node.alive = true;
        node.election = Election::new(node.name.clone());
        node.mine.clear();
        node.pulse = Pulse::default();
        node.wrote = None;
        node.inbox = self
            .leases
            .iter()
            .map(|(name, sign)| (now, name.clone(), sign.clone()))
            .collect();
    }

    /// Who announces the address: the numbers of the nodes.
    fn announcers(&self, address: IpAddr) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(_, node)| node.alive && node.mine.contains(&address))
            .map(|(n, _)| n)
            .collect()
    }

    fn all(&self) -> Vec<(IpAddr, Vec<usize>)> {
        let addresses = self.addresses.iter();
        addresses
            .map(|(ip, _)| (*ip, self.announcers(*ip)))
            .collect()
    }

    fn fast(&self) -> usize {
        let alive = self.nodes.iter().filter(|node| node.alive);
        alive.filter(|node| node.pulse.fast).count()
    }
}

const LONG: Duration = Duration::from_secs(15);

#[test]
fn each_address_has_one_announcer_and_the_cost_follows_the_announcers() {
    let mut world = World::new(12, 1);
    world.run(LONG);
    assert_eq!(world.announcers(ip(1)).len(), 1);
    assert_eq!(world.fast(), 2, "the announcer and one standby");
    let mut world = World::new(5, 200);
    world.run(LONG);
    assert!(world.all().iter().all(|(_, who)| who.len() == 1));
    assert_eq!(world.fast(), 5);
    let before = world.writes;
    world.run(Duration::from_secs(10));
    assert!(
        world.writes - before <= 5 * 26,
        "200 services cost what one costs"
    );
}

#[test]
fn a_dead_announcer_is_replaced_within_two_seconds() {
    // Dying at each moment between two renewals.
    for offset in 0..20 {
        let mut world = World::new(4, 1);
        world.run(LONG + STEP * offset);
        let [dead] = world.announcers(ip(1))[..] else {
            panic!("{:?}", world.all());
        };
        world.kill(dead);
        let died = world.now;
        while world.announcers(ip(1)).is_empty() {
            world.step();
        }
        let took = world.now - died;
        assert!(took < Duration::from_secs(2), "{took:?}");
        world.run(LONG);
        assert_eq!(world.announcers(ip(1)).len(), 1);
        // And when it comes back it is the announcer again, as it comes first.
        world.restart(dead);
        world.run(LONG);
        assert_eq!(world.announcers(ip(1)), [dead]);
    }
}

#[test]
fn two_that_die_at_once_are_replaced_too() {
    let mut world = World::new(6, 1);
    world.run(LONG);
    let first = world.announcers(ip(1))[0];
    let second = (0..6)
        .find(|n| *n != first && world.nodes[*n].pulse.fast)
        .unwrap();
    world.kill(first);
    world.kill(second);
    world.run(Duration::from_secs(6));
    assert_eq!(world.announcers(ip(1)).len(), 1);
}

#[test]
fn without_the_api_server_nothing_changes() {
    let mut world = World::new(4, 20);
    world.run(LONG);
    let before = world.all();
    world.api = false;
    for _ in 0..3000 {
        world.step();
        assert_eq!(world.all(), before);
    }
    // Back, and slow to come back for some.
    world.api = true;
    for _ in 0..1000 {
        world.step();
        assert_eq!(world.all(), before);
    }
}

#[test]
fn who_is_cut_off_goes_on_until_another_takes_over() {
    let mut world = World::new(3, 1);
    world.run(LONG);
    let lonely = world.announcers(ip(1))[0];
    world.nodes[lonely].connected = false;
    for _ in 0..500 {
        world.step();
        assert!(!world.announcers(ip(1)).is_empty(), "never nobody");
    }
    let after = world.announcers(ip(1));
    assert!(after.len() == 1 && after[0] != lonely, "{after:?}");
    world.nodes[lonely].connected = true;
    world.run(LONG);
    assert_eq!(world.announcers(ip(1)), [lonely]);
}

#[test]
fn a_local_address_follows_the_nodes_with_endpoints() {
    let mut world = World::new(4, 1);
    let local = |nodes: &[usize]| {
        let names = nodes.iter().map(|n| Name::from(format!("worker-{n}")));
        Who::Nodes(names.collect::<BTreeSet<_>>())
    };
    for nodes in [&[2][..], &[0, 3], &[1]] {
        world.addresses[0].1 = local(nodes);
        world.run(LONG);
        let [announcer] = world.announcers(ip(1))[..] else {
            panic!("{:?}", world.all());
        };
        assert!(nodes.contains(&announcer));
    }
    world.addresses[0].1 = local(&[]);
    world.run(LONG);
    assert_eq!(world.all()[0].1, Vec::<usize>::new());
}

#[derive(Clone, Debug)]
enum Fault {
    Kill(usize),
    Restart(usize),
    Api(bool),
    Connected(usize, bool),
    Wait(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = || 0_usize..4;
    prop_oneof![
        node().prop_map(Fault::Kill),
        node().prop_map(Fault::Restart),
        any::<bool>().prop_map(Fault::Api),
        (node(), any::<bool>()).prop_map(|(n, yes)| Fault::Connected(n, yes)),
        (20_u64..6000).prop_map(Fault::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn after_any_history_each_address_has_one_announcer(faults in prop::collection::vec(fault(), 0..16)) {
        let mut world = World::new(4, 4);
        for fault in faults {
            match fault {
                Fault::Kill(n) => world.kill(n),
                Fault::Restart(n) => world.restart(n),
                Fault::Api(up) => world.api = up,
                Fault::Connected(n, yes) => world.nodes[n].connected = yes,
                Fault::Wait(ms) => world.run(Duration::from_millis(ms)),
            }
        }
        world.api = true;
        for node in &mut world.nodes {
            node.connected = true;
        }
        world.run(LONG);
        let alive = world.nodes.iter().filter(|node| node.alive).count();
        for (_, announcers) in world.all() {
            prop_assert_eq!(announcers.len(), alive.min(1));
        }
    }
}
