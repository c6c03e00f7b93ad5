//! For tests: clusters of random policies and pods, what upstream's documentation says of them, and the maps as a packet
//! meets them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_ebpf::abi::policy::{FlowKey, FlowRow, IdentityRow, PodRow, RuleKey};
use agent_ebpf::abi::{Address, LinkIndex, TCP, UDP};
use agent_ebpf::policy::{Conversation, Direction, Kind, Packet, Tables, decide};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::compile::{Local, LocalLink};
use super::convert::{self, Common};
use super::prefix::{Lengths, Prefix};
use super::state::Pinned;
use super::view::View;
use crate::cluster::ObjectKey;
use crate::network::addresses::veth_name;

pub const NODE: &str = "n1";
pub const NODE_ADDRESS: &str = "10.0.1.254";
const NAMESPACES: [&str; 2] = ["a", "b"];

/// Everything as the API has it.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub namespaces: Vec<core::Namespace>,
    pub pods: Vec<core::Pod>,
    pub policies: Vec<NetworkPolicy>,
}

impl World {
    pub fn view(&self) -> View {
        let mut common = Common::default();
        let mut view = View {
            complete: true,
            ..View::default()
        };
        for namespace in &self.namespaces {
            let name = namespace.metadata.name.as_deref().unwrap().into();
            let labels = convert::namespace(namespace, &mut common);
            view.namespaces.insert(name, labels);
        }
        for pod in &self.pods {
            let key = common.key(&pod.metadata).unwrap();
            if let Some(pod) = convert::pod(pod, NODE, &mut common) {
                view.pods.insert(key, pod.into());
            }
        }
        for policy in &self.policies {
            let key = common.key(&policy.metadata).unwrap();
            let (policy, unread) = convert::policy(policy, &mut common);
            assert!(unread.is_empty(), "{unread:?}");
            view.policies.insert(key, policy.into());
        }
        view
    }

    /// The links of this node's pods.
    pub fn local(&self) -> Local {
        let pods = self.pods.iter().filter(|pod| is_here(pod));
        let links = pods.map(|pod| {
            let uid = pod.metadata.uid.as_deref().unwrap();
            let link = LocalLink {
                index: link_of(pod),
                addresses: addresses_of(pod),
            };
            (veth_name(uid).into(), link)
        });
        Local {
            links: links.collect(),
            node: [NODE_ADDRESS.parse().unwrap()].into(),
        }
    }
}

/// Whether the pod has a link on this node.
pub fn is_here(pod: &core::Pod) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let phase = pod.status.as_ref().unwrap().phase.as_deref();
    spec.node_name.as_deref() == Some(NODE)
        && spec.host_network != Some(true)
        && phase == Some("Running")
}

pub fn link_of(pod: &core::Pod) -> LinkIndex {
    LinkIndex(pod.metadata.uid.as_deref().unwrap().parse().unwrap())
}

pub fn addresses_of(pod: &core::Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().unwrap().pod_ips.iter().flatten();
    ips.map(|ip| ip.ip.parse().unwrap()).collect()
}

pub fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

pub fn policy(value: Value) -> NetworkPolicy {
    serde_json::from_value(value).unwrap()
}

/// Maps as a packet meets them, with no conversation remembered.
pub struct Met<'a> {
    pinned: &'a Pinned,
    lengths: Lengths,
}

impl<'a> Met<'a> {
    pub fn new(pinned: &'a Pinned) -> Self {
        let lengths = Lengths::of(&pinned.identities);
        Self { pinned, lengths }
    }

    /// Whether the first packet of a conversation passes at a pod's link. `port` is the one that is connected to.
    pub fn passes(&self, link: LinkIndex, direction: Direction, flow: &Flow) -> bool {
        let (source, destination) = match direction {
            Direction::Ingress => (flow.peer, flow.pod),
            Direction::Egress => (flow.pod, flow.peer),
        };
        let packet = Packet {
            source: source.into(),
            destination: destination.into(),
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: flow.port.to_be_bytes(),
            identification: 0,
            about: Conversation::NONE,
            kind: Kind::Ports,
            protocol: flow.protocol,
            opens: true,
            is_first_fragment: false,
            from_node: false,
        };
        decide(self, link, direction, &packet).is_ok()
    }
}

impl Tables for Met<'_> {
    fn generation(&self) -> u32 {
        self.pinned.generation
    }
    fn pod(&self, link: LinkIndex) -> Option<PodRow> {
        self.pinned.pods.get(&link).copied()
    }
    fn identity(&self, address: &Address) -> Option<IdentityRow> {
        let address = Prefix {
            address: *address,
            bits: 128,
        };
        let rows = &self.pinned.identities;
        self.lengths.covering(rows, &address, u32::MAX).copied()
    }
    fn allows(&self, key: &RuleKey) -> bool {
        let mut port = u16::from_be_bytes(key.port);
        let by_port = (0..=16).any(|free| {
            port &= u16::MAX.checked_shl(free).unwrap_or(0);
            let key = RuleKey {
                port: port.to_be_bytes(),
                ..*key
            };
            self.pinned.rules.contains(&(key, RuleKey::BITS - free))
        });
        let everything = RuleKey {
            protocol: 0,
            port: [0; 2],
            ..*key
        };
        by_port
            || self
                .pinned
                .rules
                .contains(&(everything, RuleKey::PEER_BITS))
    }
    fn flow(&self, _: &FlowKey) -> Option<FlowRow> {
        None
    }
    fn remember(&self, _: &FlowKey, _: &FlowRow) {}
    fn forget(&self, _: &FlowKey) {}
    fn now_ns(&self) -> u64 {
        0
    }
}

/// A conversation of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub pod: IpAddr,
    pub peer: IpAddr,
    pub protocol: u8,
    pub port: u16,
}

/// Which conversations are tried: every pod of this node, both ways, with everybody, on some ports.
pub fn flows(worlds: &[&World]) -> Vec<(LinkIndex, Direction, Flow)> {
    let outside = [
        "10.0.1.99",
        "10.0.3.1",
        "192.0.2.1",
        "192.0.2.200",
        "8.8.8.8",
        "2001:db8::1",
        NODE_ADDRESS,
    ];
    let mut peers: Vec<IpAddr> = outside.iter().map(|it| it.parse().unwrap()).collect();
    let mut pods = BTreeMap::new();
    for pod in worlds.iter().flat_map(|world| &world.pods) {
        peers.extend(addresses_of(pod));
        if is_here(pod) {
            pods.insert(link_of(pod), addresses_of(pod));
        }
    }
    peers.sort();
    peers.dedup();
    let ports = [
        (TCP, 80),
        (TCP, 8080),
        (TCP, 81),
        (UDP, 53),
        (UDP, 80),
        (TCP, 9000),
        (1, 0),
    ];
    let mut flows = Vec::new();
    for (link, own) in &pods {
        for pod in own {
            for peer in peers.iter().filter(|peer| peer.is_ipv4() == pod.is_ipv4()) {
                for (protocol, port) in ports {
                    for direction in [Direction::Ingress, Direction::Egress] {
                        let flow = Flow {
                            pod: *pod,
                            peer: *peer,
                            protocol,
                            port,
                        };
                        flows.push((*link, direction, flow));
                    }
                }
            }
        }
    }
    flows
}

fn labels() -> impl Strategy<Value = Value> {
    (0..3usize, 0..3usize).prop_map(|(app, tier)| {
        let mut labels = json!({});
        if app > 0 {
            labels["app"] = json!(["web", "db"][app - 1]);
        }
        if tier > 0 {
            labels["tier"] = json!(["front", "back"][tier - 1]);
        }
        labels
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let expression = (
        0..4usize,
        prop::sample::select(vec!["app", "tier", "none"]),
        prop::sample::subsequence(vec!["web", "db", "front"], 1..3),
    );
    let expression = expression.prop_map(|(operator, key, values)| {
        let operator = ["In", "NotIn", "Exists", "DoesNotExist"][operator];
        match operator {
            "In" | "NotIn" => json!({ "key": key, "operator": operator, "values": values }),
            _ => json!({ "key": key, "operator": operator }),
        }
    });
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|labels| json!({ "matchLabels": labels })),
        2 => (labels(), prop::collection::vec(expression, 1..3)).prop_map(
            |(labels, list)| json!({ "matchLabels": labels, "matchExpressions": list })
        ),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let blocks = prop::sample::select(vec![
        json!({ "cidr": "0.0.0.0/0" }),
        json!({ "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"] }),
        json!({ "cidr": "10.0.0.0/8", "except": ["10.0.1.0/24", "10.0.2.3/32"] }),
        json!({ "cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"] }),
        json!({ "cidr": "10.0.1.1/32" }),
        json!({ "cidr": "::/0" }),
        json!({ "cidr": "::/0", "except": ["fd00::/64"] }),
        json!({ "cidr": "fd00::/126" }),
    ]);
    prop_oneof![
        selector().prop_map(|pods| json!({ "podSelector": pods })),
        selector().prop_map(|namespaces| json!({ "namespaceSelector": namespaces })),
        (selector(), selector()).prop_map(
            |(pods, namespaces)| json!({ "podSelector": pods, "namespaceSelector": namespaces })
        ),
        blocks.prop_map(|block| json!({ "ipBlock": block })),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({}),
        json!({ "protocol": "UDP" }),
        json!({ "port": 80 }),
        json!({ "port": 53, "protocol": "UDP" }),
        json!({ "port": "http" }),
        json!({ "port": "http", "protocol": "UDP" }),
        json!({ "port": "dns", "protocol": "UDP" }),
        json!({ "port": 80, "endPort": 8080, "protocol": "TCP" }),
        json!({ "port": 81, "endPort": 65535 }),
    ])
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    );
    let rule = rule.prop_map(move |(of, ports)| json!({ peers: of, "ports": ports }));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

prop_compose! {
    fn any_policy()(
        namespace in 0..2usize,
        pods in selector(),
        ingress in rules("from"),
        egress in rules("to"),
        types in 0..4usize,
    ) -> Value {
        let types = [json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])][types].clone();
        json!({
            "metadata": { "namespace": NAMESPACES[namespace] },
            "spec": { "podSelector": pods, "ingress": ingress, "egress": egress, "policyTypes": types },
        })
    }
}

prop_compose! {
    fn any_pod()(
        namespace in 0..2usize,
        labels in labels(),
        node in prop::bool::weighted(0.6),
        http in 0..3usize,
        dns in any::<bool>(),
        state in 0..10u8,
        v6 in any::<bool>(),
    ) -> Value {
        let mut ports = vec![];
        if http > 0 {
            ports.push(json!({ "name": "http", "containerPort": if http == 1 { 80 } else { 8080 } }));
        }
        if dns {
            ports.push(json!({ "name": "dns", "containerPort": 53, "protocol": "UDP" }));
        }
        json!({
            "metadata": { "namespace": NAMESPACES[namespace], "labels": labels },
            "spec": {
                "nodeName": if node { NODE } else { "n2" },
                "hostNetwork": state == 0,
                "containers": [{ "name": "c", "ports": ports }],
            },
            "status": { "phase": if state == 1 { "Succeeded" } else { "Running" }, "v6": v6 },
        })
    }
}

prop_compose! {
    /// Up to seven pods in two namespaces, and up to four policies. A pod has the same name, link and addresses in every world.
    pub fn worlds()(
        teams in prop::collection::vec(labels(), 2),
        pods in prop::collection::vec(prop::option::weighted(0.8, any_pod()), 7),
        policies in prop::collection::vec(any_policy(), 0..5),
    ) -> World {
        let namespaces = teams.into_iter().enumerate().map(|(n, labels)| {
            json!({ "metadata": { "name": NAMESPACES[n], "labels": labels } })
        });
        let pods = pods.into_iter().enumerate().filter_map(|(n, pod)| {
            let mut pod = pod?;
            pod["metadata"]["name"] = json!(format!("p{n}"));
            pod["metadata"]["uid"] = json!((n + 1).to_string());
            let node = if pod["spec"]["nodeName"] == NODE { 1 } else { 2 };
            let mut ips = vec![json!({ "ip": format!("10.0.{node}.{}", n + 1) })];
            if pod["status"]["v6"] == true {
                ips.push(json!({ "ip": format!("fd00::{}", n + 1) }));
            }
            if pod["spec"]["hostNetwork"] == true {
                ips = vec![];
            }
            pod["status"]["podIPs"] = json!(ips);
            Some(pod)
        });
        let policies = policies.into_iter().enumerate().map(|(n, mut policy)| {
            policy["metadata"]["name"] = json!(format!("policy{n}"));
            policy
        });
        World {
            namespaces: namespaces.map(|it| serde_json::from_value(it).unwrap()).collect(),
            pods: pods.map(|it| serde_json::from_value(it).unwrap()).collect(),
            policies: policies.map(|it| serde_json::from_value(it).unwrap()).collect(),
        }
    }
}
