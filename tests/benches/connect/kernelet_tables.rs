//! The agent's programs on the client's cgroup, and its tables filled as the agent fills them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_ebpf::abi::{SHARE_ONE, Scope, ServiceKey, TCP};
use kernelet::cluster::{
    Cluster, Endpoint, Locality, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort,
};
use kernelet::dataplane::{self, Config, MapOp, MapSizes, Maps, ServiceMaps};
use kernelet::proxy::{LbState, desired};

use super::common::client::{self, BACKEND_PORT, Exchange};
use super::{Case, ENDPOINTS, Family, PORT, PREFIX, endpoint, service};

const NODE: &str = "node";
/// How often the agent looks at the signals of its backends.
const FEEDBACK_EVERY: Duration = Duration::from_millis(100);

/// What the tables are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    Plain,
    /// Services with session affinity.
    Affinity,
    /// The share of the dialled service that stays on the node changes all the time, see [`Feedback`].
    Feedback,
}

/// Where the programs and maps of all cases are pinned, so that they serve after [`fill`] returns.
pub fn bpf_directory() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(PREFIX)
}

/// The agent's usual ones while they suffice.
fn sizes(services: u32) -> MapSizes {
    let usual = MapSizes::default();
    if services <= usual.backends / ENDPOINTS {
        usual
    } else {
        MapSizes::for_services(services.next_power_of_two() * 2)
    }
}

/// Where one case's maps are.
pub fn directory(case: &str) -> PathBuf {
    let version = format!("v{}", agent_ebpf::abi::ABI_VERSION);
    bpf_directory().join(case).join(version)
}

/// Loads the programs and writes all services; gives how long the writing took.
pub fn fill(case: &Case, tables: Tables, services: u32) -> Duration {
    let cluster = Cluster::default();
    cluster.update(|view| {
        for number in 0..services {
            let key = ObjectKey::new("default", format!("service-{number}"));
            view.services
                .insert(key.clone(), Arc::new(slim_service(case, tables, number)));
            view.slices
                .insert(key.clone(), Arc::new(slim_slice(case, number)));
            view.slices_of.insert(key.clone(), vec![key.name]);
        }
        Vec::new()
    });

    let cgroup = client::cgroup(PREFIX, case.name);
    std::fs::create_dir_all(&cgroup).expect("a cgroup");
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config {
        bpf_dir: bpf_directory().join(case.name),
        cgroup,
        sizes: sizes(services),
    };
    let mut dataplane = dataplane::start(&config, &probe).unwrap_or_else(|error| panic!("{error}"));

    let began = Instant::now();
    let mut state = LbState::new();
    state.set_synced();
    let view = cluster.view();
    for key in view.services.keys() {
        let (frontends, ignored) = desired(&view, NODE, Locality::Node, key);
        for frontend in state.assign(key, frontends, ignored) {
            if let Some(flip) = state.plan(key, &frontend) {
                dataplane
                    .maps
                    .apply_all(&flip.ops)
                    .unwrap_or_else(|error| panic!("{error}"));
                state.settle(flip, true);
            }
        }
    }
    began.elapsed()
}

fn slim_service(case: &Case, tables: Tables, number: u32) -> Service {
    Service {
        cluster_ips: vec![service(case.family, number).ip()],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: protocol(case.exchange),
            port: PORT,
            node_port: None,
        }],
        affinity_timeout_s: (tables == Tables::Affinity).then_some(10_800),
        ..Service::default()
    }
}

fn protocol(exchange: Exchange) -> Protocol {
    match exchange {
        Exchange::Request => Protocol::Udp,
        Exchange::Connect | Exchange::Call | Exchange::Stream => Protocol::Tcp,
    }
}

fn slim_slice(case: &Case, number: u32) -> Slice {
    let endpoints = (0..ENDPOINTS).map(|index| Endpoint {
        addresses: vec![endpoint(case.family, number, index).ip()],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(NODE.into()),
        ..Endpoint::default()
    });
    Slice {
        service: format!("service-{number}").into(),
        ports: vec![SlicePort {
            name: "".into(),
            protocol: protocol(case.exchange),
            port: BACKEND_PORT,
        }],
        endpoints: endpoints.collect(),
        ..Slice::default()
    }
}

/// What feedback does to the maps while a service's backends are under changing load: reads their counters, and writes
/// another share, ten times a second.
pub struct Feedback {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Feedback {
    pub fn start(case: &'static str, services: u32) -> Feedback {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let dialled = service(Family::V4, services / 2);
        let key = ServiceKey {
            address: dialled.ip().into(),
            port: dialled.port().to_be_bytes(),
            protocol: TCP,
            scope: Scope::CLUSTER,
        };
        let thread = std::thread::spawn(move || {
            let mut maps = Maps::open(&directory(case)).unwrap_or_else(|error| panic!("{error}"));
            let mut share = SHARE_ONE / 2;
            while !stopped.load(Ordering::Relaxed) {
                maps.totals().expect("counters can be read");
                let entry = maps.service(&key).expect("the map can be read");
                let mut entry = entry.expect("the service is there");
                share = SHARE_ONE + SHARE_ONE / 2 - share;
                entry.local_share = share.min(SHARE_ONE);
                maps.apply(&MapOp::PutService(key, entry))
                    .expect("the map can be written");
                std::thread::sleep(FEEDBACK_EVERY);
            }
        });
        Feedback { stop, thread }
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("feedback goes on to its end");
    }
}
