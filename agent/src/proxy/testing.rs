//! What the proxy's tests share: views made of few words, maps as plain values, and the draws the kernel could make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use agent_ebpf::abi::{
    BackendId, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES, MAGLEV_CHUNK, MaglevKey, Scope, ServiceEntry,
    ServiceKey, SlotKey, SourceRange,
};

use super::feedback::{Counters, Load, Look};
use super::maglev;
use super::policy::{Class, Target, desired};
use super::state::LbState;
use crate::cluster::{
    Endpoint, Exposed, Locality, Node, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort,
    View,
};
use crate::dataplane::fake::FakeMaps;
use crate::dataplane::{MapOp, PinnedState, ServiceMaps as _, SourcePrefix};

pub(super) const NODE: &str = "a";

pub(super) fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, 0, last))
}

pub(super) fn service(address: &str) -> Service {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
    };
    Service {
        cluster_ips: vec![address.parse().unwrap()],
        ports: vec![port],
        ..Service::default()
    }
}

/// With a node port 30080, a load balancer's address 203.0.113.1 and an external IP 198.51.100.1.
pub(super) fn exposed_service(address: &str) -> Service {
    let mut service = service(address);
    service.ports[0].node_port = Some(30_080);
    service.exposed = Some(Box::new(Exposed {
        node_ports: true,
        load_balancer_ips: vec!["203.0.113.1".parse().unwrap()],
        external_ips: vec!["198.51.100.1".parse().unwrap()],
        ..Exposed::default()
    }));
    service
}

pub(super) fn endpoint(last: u8, node: &str, zone: &str) -> Endpoint {
    Endpoint {
        addresses: vec![ip(last)],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        zone: Some(zone.into()),
        pod: Some(format!("pod-{last}").into()),
        ..Endpoint::default()
    }
}

pub(super) fn terminating(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ready: false,
        terminating: true,
        ..endpoint
    }
}

pub(super) fn not_ready(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        ready: false,
        serving: false,
        ..endpoint
    }
}

pub(super) fn slice(service: &str, endpoints: Vec<Endpoint>) -> Slice {
    let port = SlicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    Slice {
        service: service.into(),
        ports: vec![port],
        endpoints,
        ..Slice::default()
    }
}

/// A view with this node in zone `z1`, and services (namespace `ns`) with one slice each.
pub(super) fn view(services: Vec<(&str, Service, Vec<Endpoint>)>) -> View {
    let mut view = View::default();
    view.set_node(
        NODE.into(),
        Some(Node {
            zone: Some("z1".into()),
            ..Node::default()
        }),
    );
    for (name, service, endpoints) in services {
        view.set_service(ObjectKey::new("ns", name), Some(service));
        view.set_slice(
            ObjectKey::new("ns", format!("{name}-1")),
            Some(slice(name, endpoints)),
        );
    }
    view
}

/// What a dial of a service address may end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    NotService,
    Refused,
    Hole,
    Sent(Target),
    /// From outside: what becomes of the client before a backend is drawn. Beside one of the others.
    LetIn(IpAddr),
    Barred(IpAddr),
}

/// Clients outside, who are in some of the source ranges that tests have.
pub(super) const CLIENTS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
];

/// The maps.
#[derive(Clone, Debug, Default)]
pub(super) struct Maps(FakeMaps);

impl std::ops::Deref for Maps {
    type Target = PinnedState;
    fn deref(&self) -> &PinnedState {
        &self.0.state
    }
}

impl Maps {
    pub(super) fn apply(&mut self, op: MapOp) {
        self.0.apply(&op).unwrap();
    }

    pub(super) fn pinned(&self) -> PinnedState {
        self.0.state.clone()
    }

    /// Where a backend listens.
    pub(super) fn target(&self, id: BackendId) -> Target {
        let row = self.backends[&id];
        Target {
            address: row.address,
            port: row.port,
            protocol: row.protocol,
        }
    }

    /// Every outcome that a draw could have which read `entry` of `key` and now reads the rows.
    pub(super) fn outcomes_of(
        &self,
        key: &ServiceKey,
        entry: Option<&ServiceEntry>,
    ) -> BTreeSet<Outcome> {
        let Some(entry) = entry else {
            return [Outcome::NotService].into();
        };
        let mut outcomes = self.guarded(key, entry);
        match entry {
            ServiceEntry {
                ready: 0,
                terminating: 0,
                ..
            } => drop(outcomes.insert(Outcome::Refused)),
            _ if maglev::size(entry).is_some() => outcomes.extend(self.hashed(entry)),
            _ => outcomes.extend(self.drawn(entry)),
        }
        outcomes
    }

    fn drawn(&self, entry: &ServiceEntry) -> BTreeSet<Outcome> {
        let slots = match entry {
            ServiceEntry {
                ready: 0,
                terminating,
                ..
            } => 0..*terminating,
            ServiceEntry { flags, local, .. } if flags & FLAG_LOCAL_ONLY != 0 => 0..*local,
            ServiceEntry { ready, .. } => 0..*ready,
        };
        let row = |slot| {
            let key = SlotKey {
                service_id: entry.service_id,
                generation: entry.generation,
                slot,
            };
            self.slots.get(&key)
        };
        slots.map(|slot| self.sent(row(slot))).collect()
    }

    fn hashed(&self, entry: &ServiceEntry) -> BTreeSet<Outcome> {
        let mut left = maglev::size(entry).unwrap() as usize;
        let mut ids = BTreeSet::new();
        for chunk in 0..maglev::chunks(entry) {
            let key = MaglevKey {
                service_id: entry.service_id,
                generation: entry.generation,
                chunk,
            };
            let part = left.min(MAGLEV_CHUNK);
            match self.maglev.get(&key) {
                Some(row) => ids.extend(row.0[..part].iter().map(Some)),
                None => drop(ids.insert(None)),
            }
            left -= part;
        }
        ids.into_iter().map(|id| self.sent(id)).collect()
    }

    fn sent(&self, id: Option<&BackendId>) -> Outcome {
        let there = id.filter(|id| self.backends.contains_key(id));
        there.map_or(Outcome::Hole, |id| Outcome::Sent(self.target(*id)))
    }

    fn guarded(&self, key: &ServiceKey, entry: &ServiceEntry) -> BTreeSet<Outcome> {
        if key.scope != Scope::EXTERNAL {
            return BTreeSet::new();
        }
        let in_range = |client: IpAddr| {
            let client = SourcePrefix::new(entry.service_id, client.into()).range;
            let bits = |it: &SourceRange| u128::from_be_bytes(it.address.octets());
            let has = |it: &SourcePrefix| {
                let differ = bits(&it.range) ^ bits(&client);
                let shift = 160 - it.bits;
                it.range.service_id == client.service_id
                    && differ.checked_shr(shift).unwrap_or(0) == 0
            };
            self.source_ranges.iter().any(has)
        };
        let open = entry.flags & FLAG_SOURCE_RANGES == 0;
        let clients = CLIENTS.into_iter();
        clients
            .map(|client| match open || in_range(client) {
                true => Outcome::LetIn(client),
                false => Outcome::Barred(client),
            })
            .collect()
    }

    pub(super) fn outcomes(&self, key: &ServiceKey) -> BTreeSet<Outcome> {
        self.outcomes_of(key, self.services.get(key))
    }
}

/// For every service address of `view`, what a dial may rightly end in. Where several services ask for one address, any
/// of them may have it.
pub(super) fn allowed(view: &View) -> BTreeMap<ServiceKey, BTreeSet<Outcome>> {
    let mut all: BTreeMap<ServiceKey, BTreeSet<Outcome>> = BTreeMap::new();
    for service in view.services.keys() {
        for frontend in desired(view, NODE, Locality::Node, service).0 {
            let any_ready = frontend
                .backends
                .iter()
                .any(|backend| backend.class < Class::Terminating);
            let used = frontend.backends.iter().filter(|b| {
                b.class < Class::Terminating || !any_ready && b.class == Class::Terminating
            });
            let mut outcomes: BTreeSet<_> =
                used.map(|backend| Outcome::Sent(backend.target)).collect();
            if outcomes.is_empty() {
                outcomes.insert(Outcome::Refused);
            }
            if frontend.key.scope == Scope::EXTERNAL {
                let ranges = frontend.source_ranges.as_ref();
                outcomes.extend(CLIENTS.map(|client| {
                    let in_one =
                        |ranges: &[ipnet::IpNet]| ranges.iter().any(|it| it.contains(&client));
                    match ranges.is_none_or(|ranges| in_one(ranges)) {
                        true => Outcome::LetIn(client),
                        false => Outcome::Barred(client),
                    }
                }));
            }
            all.entry(frontend.key).or_default().extend(outcomes);
        }
    }
    all
}

/// Does one pass as the worker does it; `write` performs one write, or fails. Returns the writes that were performed.
pub(super) fn pass(
    state: &mut LbState,
    view: &View,
    services: &BTreeSet<ObjectKey>,
    mut write: impl FnMut(MapOp) -> bool,
) -> usize {
    let mut written = 0;
    let mut perform = |ops: &[MapOp]| {
        ops.iter().all(|op| {
            write(op.clone()) && {
                written += 1;
                true
            }
        })
    };
    let sync = |state: &mut LbState, key: &ObjectKey, perform: &mut dyn FnMut(&[MapOp]) -> bool| {
        let (frontends, ignored) = desired(view, NODE, Locality::Node, key);
        for frontend in state.assign(key, frontends, ignored) {
            if let Some(flip) = state.plan(key, &frontend) {
                let done = perform(&flip.ops);
                state.settle(flip, done);
            }
        }
    };
    for key in services {
        sync(state, key, &mut perform);
    }
    for key in state.orphans() {
        if let Some(heir) = state.heir(&key) {
            sync(state, &heir, &mut perform);
        }
        if let Some(flip) = state.remove(key) {
            let done = perform(&flip.ops);
            state.settle(flip, done);
        }
    }
    written
}

/// Sees no traffic.
pub(super) struct Blind;

impl Look for Blind {
    fn counters(&mut self, _: BackendId) -> Counters {
        Counters::default()
    }

    fn load(&mut self, _: &Target) -> Load {
        Load::default()
    }
}

/// Every service that either view names.
pub(super) fn services_of(views: &[&View]) -> BTreeSet<ObjectKey> {
    views
        .iter()
        .flat_map(|view| view.services.keys().chain(view.slices_of.keys()))
        .cloned()
        .collect()
}
