//! The agent's programs at the node's links, and its tables filled as the agent fills them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use agent_ebpf::abi::{ABI_VERSION, LinkIndex, PodEntry, UplinkEntry};
use kernelet::cluster::{
    Cluster, Endpoint, Exposed, Locality, Node, ObjectKey, Protocol, Service, ServicePort, Slice,
    SlicePort, View,
};
use kernelet::dataplane::{self, Config, MapSizes, ServiceMaps as _, Uplink, Uplinks};
use kernelet::proxy::{LbState, desired};
use kernelet_tests::host;

use super::common::client::{self, BACKEND_PORT};
use super::common::index_of;
use super::{ENDPOINTS, FIRST_PORT, NODE, PORTS, PREFIX, endpoint, node_port, service};

const NAME: &str = "node";

/// Where the programs and maps are pinned, so that they serve after [`serve`] returns.
pub fn bpf_directory() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(PREFIX)
}

/// Where the maps are.
pub fn directory() -> PathBuf {
    bpf_directory().join(format!("v{ABI_VERSION}"))
}

/// Has the node in that namespace answer node ports.
pub fn serve(netns: &str, services: u32) {
    let cluster = Cluster::default();
    cluster.update(|view| {
        fill(view, services);
        Vec::new()
    });
    let cgroup = client::cgroup(PREFIX, netns);
    host::create_dir(&cgroup).unwrap_or_else(|error| panic!("{error}"));
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let config = Config {
        bpf_dir: bpf_directory(),
        cgroup,
        sizes: MapSizes::for_services(services.next_power_of_two() * 4),
    };
    let link = LinkIndex(index_of(netns, "eth0"));
    let start = move || {
        let dataplane = dataplane::start(&config, &probe);
        let mut dataplane = dataplane.unwrap_or_else(|error| panic!("{error}"));
        let maps = &mut dataplane.maps;
        maps.set_node_ports(FIRST_PORT, FIRST_PORT + PORTS - 1)
            .expect("the map can be written");
        maps.set_node_addresses(&BTreeSet::from([NODE.into()]))
            .expect("the map can be written");
        let mut state = LbState::new();
        state.set_synced();
        let view = cluster.view();
        for key in view.services.keys() {
            let (frontends, ignored) = desired(&view, NAME, Locality::Node, key);
            assert!(ignored.is_empty(), "{ignored:?}");
            for frontend in state.assign(key, frontends, ignored) {
                if let Some(flip) = state.plan(key, &frontend) {
                    let written = maps.apply_all(&flip.ops);
                    written.unwrap_or_else(|error| panic!("{error}"));
                    state.settle(flip, true);
                }
            }
        }
        let own = UplinkEntry {
            ipv4: NODE.into(),
            ipv6: PodEntry::NONE,
        };
        let uplink = Uplink {
            name: "eth0".into(),
            own,
            xdp: None,
        };
        let uplinks = Uplinks::new(dataplane.link_programs, &dataplane.dir);
        let mut uplinks = uplinks.unwrap_or_else(|error| panic!("{error}"));
        let applied = uplinks.apply(&BTreeMap::from([(link, uplink)]));
        applied.unwrap_or_else(|error| panic!("{error}"));
    };
    host::in_netns(&host::netns_path(netns), start).unwrap_or_else(|error| panic!("{error}"));
}

fn fill(view: &mut View, services: u32) {
    let node = Node {
        internal_ips: vec![NODE.into()],
        ..Node::default()
    };
    view.nodes.insert(NAME.into(), Arc::new(node));
    for number in 0..services {
        let key = ObjectKey::new("default", format!("service-{number}"));
        let service = Arc::new(slim_service(number));
        view.services.insert(key.clone(), service);
        let slice = Arc::new(slim_slice(number));
        view.slices.insert(key.clone(), slice);
        view.slices_of.insert(key.clone(), vec![key.name]);
    }
    view.synced = true;
}

fn slim_service(number: u32) -> Service {
    let exposed = Exposed {
        node_ports: true,
        ..Exposed::default()
    };
    Service {
        cluster_ips: vec![service(number).ip()],
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: service(number).port(),
            node_port: node_port(number),
        }],
        exposed: node_port(number).map(|_| Box::new(exposed)),
        ..Service::default()
    }
}

fn slim_slice(number: u32) -> Slice {
    let endpoints = (0..ENDPOINTS).map(|index| Endpoint {
        addresses: vec![endpoint(number, index).ip()],
        ready: true,
        serving: true,
        node: Some(NAME.into()),
        ..Endpoint::default()
    });
    Slice {
        service: format!("service-{number}").into(),
        ports: vec![SlicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: BACKEND_PORT,
        }],
        endpoints: endpoints.collect(),
        ..Slice::default()
    }
}
