//! The agent's programs on the client's cgroup, and its tables filled as the agent fills them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernelet::cluster::{
    Cluster, Endpoint, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort,
};
use kernelet::dataplane::{self, Config, MapSizes, ServiceMaps};
use kernelet::proxy::{LbState, desired};

use super::{BACKEND_PORT, ENDPOINTS, PORT, PREFIX, client, endpoint, service};

const NODE: &str = "node";

/// Where the programs and maps are pinned, so that they serve after this returns.
pub fn bpf_directory() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(PREFIX)
}

/// Loads the programs and writes all services; gives how long the writing took.
pub fn fill(case: &str, services: u32) -> Duration {
    let cluster = Cluster::default();
    cluster.update(|view| {
        for number in 0..services {
            let key = ObjectKey::new("default", format!("service-{number}"));
            view.services
                .insert(key.clone(), Arc::new(slim_service(number)));
            view.slices
                .insert(key.clone(), Arc::new(slim_slice(number)));
            view.slices_of.insert(key.clone(), vec![key.name]);
        }
        Vec::new()
    });

    let cgroup = client::cgroup(case);
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config {
        bpf_dir: bpf_directory(),
        cgroup,
        sizes: MapSizes::default(),
    };
    let mut dataplane = dataplane::start(&config, &probe).unwrap_or_else(|error| panic!("{error}"));

    let began = Instant::now();
    let mut state = LbState::new();
    state.set_synced();
    let view = cluster.view();
    for key in view.services.keys() {
        let (frontends, ignored) = desired(&view, NODE, key);
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

fn slim_service(number: u32) -> Service {
    Service {
        cluster_ips: vec![(*service(number).ip()).into()],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: PORT,
            node_port: None,
        }],
        ..Service::default()
    }
}

fn slim_slice(number: u32) -> Slice {
    let endpoints = (0..ENDPOINTS).map(|index| Endpoint {
        addresses: vec![(*endpoint(number, index).ip()).into()],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(NODE.into()),
        zone: None,
        hostname: None,
        pod: None,
    });
    Slice {
        service: format!("service-{number}").into(),
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: BACKEND_PORT,
        }],
        endpoints: endpoints.collect(),
        changed: None,
    }
}
