//! Nodes, pods and what connects them, in each of the ways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use agent_ebpf::abi::{
    BackendEntry, BackendId, LinkIndex, PodEntry, SHARE_ONE, Scope, ServiceEntry, ServiceKey,
    SlotKey, TCP, UplinkEntry,
};
use ipnet::Ipv4Net;
use kernelet::dataplane::{
    self, Config, MapOp, MapSizes, Maps, PodLinks, ServiceMaps as _, Uplink, Uplinks,
};
use kernelet::network::PodNetwork as _;
use kernelet::network::pods::{Settings, VethNetwork};
use kernelet::network::ranges::Ranges;
use kernelet_tests::host;

use super::common::client::BACKEND_PORT;
use super::common::{client, index_of, line, rules};
use super::{PREFIX, Way};

/// A machine.
pub struct Node {
    pub name: String,
    pub number: u8,
}

/// A pod's namespace, and its address.
pub struct Pod {
    pub netns: String,
    pub address: Ipv4Addr,
}

impl Node {
    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number)
    }

    fn range(&self) -> Ipv4Net {
        Ipv4Net::new(Ipv4Addr::new(10, 244, self.number, 0), 24).expect("24 is a prefix length")
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, 1)
    }

    fn pod(&self, index: usize) -> Ipv4Addr {
        let host = u8::try_from(index + 2).expect("few pods");
        Ipv4Addr::new(10, 244, self.number, host)
    }
}

/// Where programs of the agent's are pinned.
pub fn bpf_directory() -> PathBuf {
    PathBuf::from("/sys/fs/bpf").join(PREFIX)
}

/// The cgroup whose sockets the programs of a node's agent serve: where its pods are.
pub fn cgroup_of(node: &str) -> PathBuf {
    client::cgroup(PREFIX, node)
}

/// The service whose backend is a pod.
pub fn service_of(pod: Ipv4Addr) -> SocketAddr {
    let [_, _, node, host] = pod.octets();
    SocketAddr::from(([10, 96, node, host], 80))
}

/// Two nodes on one cable, with routes to each other's pods.
pub fn cable([one, two]: &[Node; 2]) {
    for node in [one, two] {
        let name = &node.name;
        line(format!("ip netns add {name}"));
        line(format!("ip -n {name} link set lo up"));
        line(format!(
            "ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1"
        ));
    }
    line(format!(
        "ip -n {} link add eth0 type veth peer name eth0 netns {}",
        one.name, two.name
    ));
    for (node, other) in [(one, two), (two, one)] {
        let (name, address) = (&node.name, node.address());
        line(format!("ip -n {name} address add {address}/24 dev eth0"));
        line(format!("ip -n {name} link set eth0 up"));
        let (range, via) = (other.range(), other.address());
        line(format!("ip -n {name} route add {range} via {via} dev eth0"));
    }
}

/// Makes and connects pods of both nodes.
pub fn connect(way: Way, [one, two]: &[Node; 2], on_one: &[&str], on_two: &[&str]) -> Vec<Pod> {
    let mut pods = Vec::new();
    for (node, names) in [(one, on_one), (two, on_two)] {
        let names = names.iter();
        let made: Vec<String> = names
            .map(|name| {
                let netns = format!("{PREFIX}-{}-{name}", way.name());
                line(format!("ip netns add {netns}"));
                line(format!("ip -n {netns} link set lo up"));
                netns
            })
            .collect();
        match way {
            Way::Veth => by_hand(node, &made),
            Way::Bridge => on_a_bridge(node, &made),
            Way::Kernelet => by_the_agent(node, &made, &[(one, on_one.len()), (two, on_two.len())]),
        }
        pods.extend(made.into_iter().enumerate().map(|(index, netns)| Pod {
            netns,
            address: node.pod(index),
        }));
    }
    pods
}

/// A link and a route for each pod, and neighbours that are known for good.
fn by_hand(node: &Node, pods: &[String]) {
    let (name, gateway) = (&node.name, node.gateway());
    line(format!("ip -n {name} address add {gateway}/32 dev lo"));
    for (index, netns) in pods.iter().enumerate() {
        let (address, n) = (node.pod(index), node.number);
        let (outer, inner) = (
            format!("02:00:00:00:{n:02x}:{index:02x}"),
            format!("06:00:00:00:{n:02x}:{index:02x}"),
        );
        line(format!(
            "ip -n {name} link add pod{index} address {outer} type veth peer name eth0 address {inner} netns {netns}"
        ));
        line(format!("ip -n {name} link set pod{index} up"));
        line(format!("ip -n {netns} address add {address}/32 dev eth0"));
        line(format!("ip -n {netns} link set eth0 up"));
        line(format!(
            "ip -n {netns} neighbour add {gateway} lladdr {outer} dev eth0"
        ));
        line(format!(
            "ip -n {netns} route add default via {gateway} dev eth0 onlink"
        ));
        line(format!(
            "ip -n {name} neighbour add {address} lladdr {inner} dev pod{index}"
        ));
        line(format!(
            "ip -n {name} route add {address}/32 dev pod{index} src {gateway}"
        ));
    }
}

/// One bridge, and a chain for each pod that masquerades what leaves the pods' range.
fn on_a_bridge(node: &Node, pods: &[String]) {
    let (name, gateway, range) = (&node.name, node.gateway(), node.range());
    line(format!("ip -n {name} link add cni0 type bridge"));
    line(format!("ip -n {name} address add {gateway}/24 dev cni0"));
    line(format!("ip -n {name} link set cni0 up"));
    // Clusters with kube-proxy have it so that packets between pods on one bridge pass its rules, too.
    line(format!(
        "ip netns exec {name} sysctl -qw net.bridge.bridge-nf-call-iptables=1"
    ));
    let mut text = String::from("*nat\n");
    for (index, netns) in pods.iter().enumerate() {
        let address = node.pod(index);
        line(format!(
            "ip -n {name} link add pod{index} type veth peer name eth0 netns {netns}"
        ));
        line(format!("ip -n {name} link set pod{index} master cni0 up"));
        line(format!("ip -n {netns} address add {address}/24 dev eth0"));
        line(format!("ip -n {netns} link set eth0 up"));
        line(format!("ip -n {netns} route add default via {gateway}"));
        let chain = format!("CNI-{:024x}", u32::from(address));
        let comment = format!("-m comment --comment \"name: \\\"bridge\\\" id: \\\"{netns}\\\"\"");
        text += &format!(
            ":{chain} - [0:0]\n\
             -A POSTROUTING -s {address}/32 {comment} -j {chain}\n\
             -A {chain} -d {range} {comment} -j ACCEPT\n\
             -A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE\n"
        );
    }
    text += "COMMIT\n";
    rules::feed(name, "iptables-restore", &["--noflush"], &text);
}

/// What the agent does when it and the pods start: programs and maps of the node's own, and links with the programs.
fn by_the_agent(node: &Node, pods: &[String], all: &[(&Node, usize)]) {
    let (range, address) = (node.range(), node.address());
    let expected: Vec<Ipv4Addr> = (0..pods.len()).map(|index| node.pod(index)).collect();
    let cgroup = cgroup_of(&node.name);
    let backends = all
        .iter()
        .flat_map(|(node, pods)| (0..*pods).map(|index| node.pod(index)));
    let services: Vec<MapOp> = (1..).zip(backends).flat_map(service).collect();
    host::create_dir(&cgroup).unwrap_or_else(|error| panic!("{error}"));
    let probe = dataplane::probe(Some(&cgroup)).unwrap_or_else(|error| panic!("{error}"));
    let uplink = LinkIndex(index_of(&node.name, "eth0"));
    let config = Config {
        bpf_dir: bpf_directory().join(&node.name),
        cgroup,
        sizes: MapSizes::default(),
    };
    let attach = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let dataplane = dataplane::start(&config, &probe);
            let mut dataplane = dataplane.unwrap_or_else(|error| panic!("{error}"));
            let written = dataplane.maps.apply_all(&services);
            written.unwrap_or_else(|error| panic!("{error}"));
            // As the agent does for each link to other machines.
            let uplinks = Uplinks::new(dataplane.link_programs.clone(), &dataplane.dir);
            let mut uplinks = uplinks.unwrap_or_else(|error| panic!("{error}"));
            let own = UplinkEntry {
                ipv4: IpAddr::from(address).into(),
                ipv6: PodEntry::NONE,
            };
            let name = "eth0".to_owned();
            let applied = uplinks.apply(&BTreeMap::from([(
                uplink,
                Uplink {
                    name,
                    own,
                    xdp: None,
                },
            )]));
            applied.unwrap_or_else(|error| panic!("{error}"));
            let mut maps = Maps::open(&dataplane.dir).unwrap_or_else(|error| panic!("{error}"));
            maps.set_node_ports(30_000, 32_767)
                .expect("the map can be written");
            let exempt = BTreeSet::from(["10.244.0.0/16".parse().expect("a range")]);
            maps.set_exempt(&BTreeSet::new(), &exempt)
                .expect("the map can be written");
            let guard = PodLinks::new(dataplane.link_programs, &dataplane.dir);
            let guard = guard.unwrap_or_else(|error| panic!("{error}"));
            let settings = Settings {
                ranges: Ranges::new([range.into()]).expect("a range"),
                node_ips: vec![address.into()],
                mtu: None,
            };
            let network = VethNetwork::set_up(settings)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            let network = network.guarded_by(Arc::new(guard)).await;
            let network = network.unwrap_or_else(|error| panic!("{error}"));
            for (netns, expected) in pods.iter().zip(expected) {
                let given = network.attach(netns, &host::netns_path(netns)).await;
                let given = given.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(given, [IpAddr::from(expected)]);
            }
        });
    };
    host::in_netns(&host::netns_path(&node.name), attach).unwrap_or_else(|error| panic!("{error}"));
}

/// The writes of a service with one backend.
fn service((id, pod): (u32, Ipv4Addr)) -> [MapOp; 3] {
    let dialled = service_of(pod);
    let backend = BackendEntry {
        address: IpAddr::from(pod).into(),
        port: BACKEND_PORT.to_be_bytes(),
        protocol: TCP,
        pad: 0,
    };
    let slot = SlotKey {
        service_id: id,
        generation: 1,
        slot: 0,
    };
    let key = ServiceKey {
        address: dialled.ip().into(),
        port: dialled.port().to_be_bytes(),
        protocol: TCP,
        scope: Scope::CLUSTER,
    };
    let entry = ServiceEntry {
        service_id: id,
        generation: 1,
        local: 0,
        zone: 0,
        ready: 1,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    };
    [
        MapOp::PutBackend(BackendId(id), backend),
        MapOp::PutSlot(slot, BackendId(id)),
        MapOp::PutService(key, entry),
    ]
}
