//! What the proxy's tests share: views made of few words, maps as plain values, and the draws the kernel could make.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use agent_ebpf::abi::{BackendId, FLAG_LOCAL_ONLY, ServiceEntry, ServiceKey, SlotKey};

use super::feedback::{Counters, Load, Look};
use super::policy::{Class, Target, desired};
use super::state::LbState;
use crate::cluster::{
    Endpoint, Locality, Node, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort, View,
};
use crate::dataplane::fake::FakeMaps;
use crate::dataplane::{MapOp, PinnedState, ServiceMaps as _};

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
}

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

    /// Every outcome that a draw could have which read `entry` and now reads the rows.
    pub(super) fn outcomes_of(&self, entry: Option<&ServiceEntry>) -> BTreeSet<Outcome> {
        let Some(entry) = entry else {
            return [Outcome::NotService].into();
        };
        let slots = match entry {
            ServiceEntry {
                ready: 0,
                terminating: 0,
                ..
            } => return [Outcome::Refused].into(),
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
            let id = self.slots.get(&key)?;
            self.backends.get(id).map(|_| self.target(*id))
        };
        slots
            .map(|slot| row(slot).map_or(Outcome::Hole, Outcome::Sent))
            .collect()
    }

    pub(super) fn outcomes(&self, key: &ServiceKey) -> BTreeSet<Outcome> {
        self.outcomes_of(self.services.get(key))
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
            write(*op) && {
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
