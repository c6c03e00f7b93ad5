//! What the tests of those who look share: a cluster of two services, the proxy's state for node `a`, and maps that hold
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use agent_ebpf::abi::pods::{Passed, PodTraffic};
use agent_ebpf::abi::{
    Address, AffinityEntry, AffinityKey, BackendId, BackendStats, DropReason, Scope, ServiceKey,
    ServiceRow, ServiceStats, SocketEntry, SocketKey, TCP,
};
use agent_ebpf::select::Served;

use super::{MapReader, Recorder};
use crate::cluster::{
    Cluster, Endpoint, Locality, Node, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort,
};
use crate::dataplane::fake::FakeMaps;
use crate::dataplane::{Lookup, MapError, MapRow, MapSummary, Outside, ServiceMaps as _, Totals};
use crate::proxy::{LbState, desired};

pub(crate) const NODE: &str = "a";

/// A cluster with `shop/web`, whose pods are `web-1` on this node and `web-2` on node `b`; `shop/idle` without any; and
/// the headless `shop/headless`.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) state: LbState,
    pub(crate) maps: FakeMaps,
}

pub(crate) fn web() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

/// A service address of the world: 10.96.0.1 is `web`, 10.96.0.2 `idle`.
pub(crate) fn dialled(last: u8, port: u16) -> ServiceKey {
    ServiceKey {
        address: std::net::Ipv4Addr::new(10, 96, 0, last).into(),
        port: port.to_be_bytes(),
        protocol: TCP,
        scope: Scope::CLUSTER,
    }
}

fn service(last: u8) -> Service {
    let port = |name: &str, protocol, port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: None,
    };
    Service {
        cluster_ips: vec![[10, 96, 0, last].into()],
        ports: vec![
            port("http", Protocol::Tcp, 80),
            port("sig", Protocol::Sctp, 81),
        ],
        ..Service::default()
    }
}

fn endpoint(last: u8, node: &str) -> Endpoint {
    Endpoint {
        addresses: vec![[10, 244, 0, last].into()],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        pod: Some(format!("web-{last}").into()),
        ..Endpoint::default()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With `shop/web` as `change` makes it.
    pub(crate) fn with(change: impl FnOnce(&mut Service)) -> Self {
        let cluster = Cluster::default();
        let (mut state, mut maps) = (LbState::new(), FakeMaps::default());
        cluster.update(|view| {
            let mut web = service(1);
            change(&mut web);
            view.set_service(self::web(), Some(web));
            view.set_service(ObjectKey::new("shop", "idle"), Some(service(2)));
            let headless = Service {
                headless: true,
                ..Service::default()
            };
            view.set_service(ObjectKey::new("shop", "headless"), Some(headless));
            view.set_node(NODE.into(), Some(Node::default()));
            let slice = Slice {
                service: "web".into(),
                ports: vec![SlicePort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 8080,
                }],
                endpoints: vec![endpoint(1, "a"), endpoint(2, "b")],
                ..Slice::default()
            };
            view.set_slice(ObjectKey::new("shop", "web-1"), Some(slice));
            for name in ["web", "idle"] {
                let key = ObjectKey::new("shop", name);
                let (frontends, ignored) = desired(view, NODE, Locality::Node, &key);
                for frontend in state.assign(&key, frontends, ignored) {
                    let flip = state.plan(&key, &frontend).expect("it is new");
                    maps.apply_all(&flip.ops).expect("they take everything");
                    state.settle(flip, true);
                }
            }
            Vec::new()
        });
        Self {
            cluster,
            state,
            maps,
        }
    }

    /// The backend that is pod `web-N`.
    pub(crate) fn backend(&self, number: u8) -> BackendId {
        let wanted = std::net::Ipv4Addr::new(10, 244, 0, number).into();
        let mut all = self.state.backends();
        all.find(|(_, target)| target.address == wanted)
            .map(|(id, _)| id)
            .expect("it is in the state")
    }

    pub(crate) fn reader(&self) -> FakeReader {
        FakeReader {
            maps: self.maps.clone(),
            ..FakeReader::default()
        }
    }
}

/// Maps that hold what a test puts there.
#[derive(Default)]
pub(crate) struct FakeReader {
    pub(crate) maps: FakeMaps,
    pub(crate) affinity: BTreeMap<AffinityKey, AffinityEntry>,
    pub(crate) sockets: Vec<(SocketKey, SocketEntry)>,
    pub(crate) outside: Vec<Outside>,
    pub(crate) totals: Mutex<Totals>,
}

impl FakeReader {
    pub(crate) fn count(&self, backend: BackendId, stats: BackendStats) {
        let mut totals = self.totals.lock().unwrap();
        totals.backends.insert(backend, stats);
    }

    pub(crate) fn refuse(&self, service_id: u32, stats: ServiceStats) {
        let mut totals = self.totals.lock().unwrap();
        totals.services.insert(service_id, stats);
    }
}

impl MapReader for FakeReader {
    fn outside(&self) -> Result<Vec<Outside>, MapError> {
        Ok(self.outside.clone())
    }

    fn traffic(&self) -> Result<BTreeMap<Address, PodTraffic>, MapError> {
        let passed = |packets, bytes| Passed { packets, bytes };
        let (sent, received) = (passed(3, 300), passed(2, 2000));
        let web_1 = Address::v4([10, 244, 0, 1]);
        Ok(BTreeMap::from([(web_1, PodTraffic { sent, received })]))
    }

    fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        Ok(vec![MapSummary {
            name: "SERVICES",
            kind: "Hash".into(),
            entries: 1,
            max_entries: 9,
            pin: "/p".into(),
        }])
    }

    fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        match name {
            "SERVICES" => Ok(vec![MapRow {
                map: "SERVICES",
                key: "k".into(),
                value: "v".into(),
                raw_key: vec![1],
                raw_value: vec![2],
            }]),
            other => Err(MapError::Unknown { name: other.into() }),
        }
    }

    fn lookup(
        &self,
        key: &ServiceKey,
        netns_cookie: Option<u64>,
    ) -> Result<Option<Lookup>, MapError> {
        let tables = &self.maps.state;
        let any = ServiceKey {
            address: agent_ebpf::node_port::any(&key.address),
            ..*key
        };
        // Every address is the node's here.
        let found = tables.services.get_key_value(key);
        let Some((key, entry)) = found.or_else(|| tables.services.get_key_value(&any)) else {
            return Ok(None);
        };
        let entry = *entry;
        let live = |slot: &agent_ebpf::abi::SlotKey| {
            (slot.service_id, slot.generation) == (entry.service_id, entry.generation)
        };
        let slots = tables.slots.iter().filter(|(slot, _)| live(slot));
        let affinity = netns_cookie.and_then(|netns_cookie| {
            let key = AffinityKey {
                netns_cookie,
                service_id: entry.service_id,
                pad: 0,
            };
            Some((key, *self.affinity.get(&key)?))
        });
        Ok(Some(Lookup {
            service: ServiceRow { key: *key, entry },
            slots: slots.map(|(slot, id)| (*slot, *id)).collect(),
            backends: tables.backends.clone(),
            served: Served::ByPacket,
            affinity,
        }))
    }

    fn sockets(&self) -> Result<Vec<(SocketKey, SocketEntry)>, MapError> {
        Ok(self.sockets.clone())
    }

    fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError> {
        Ok([(DropReason::Spoofed, 3)].into())
    }

    fn totals(&self) -> Result<Totals, MapError> {
        Ok(self.totals.lock().unwrap().clone())
    }
}

/// A kernel that notes what it was told to record.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeRecorder {
    pub(crate) every: Arc<AtomicU32>,
    pub(crate) lost: Arc<AtomicU64>,
}

impl Recorder for FakeRecorder {
    fn record(&self, every: u32) -> Result<(), MapError> {
        self.every.store(every, Ordering::Relaxed);
        Ok(())
    }
    fn lost(&self) -> Result<u64, MapError> {
        Ok(self.lost.load(Ordering::Relaxed))
    }
}
