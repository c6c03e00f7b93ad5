//! From what is known of policies and pods to what each local pod may hear and say. Pure.
//!
//! An address is to policies what they can tell about it: its [`Features`]. Addresses with equal features are one peer, so
//! rules do not grow with the number of pods. Only policies that select a pod of this node count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::policy::Direction;

use super::ports::{PortPrefix, prefixes};
use super::prefix::{Lengths, Prefix};
use super::types::{NamedPort, Peer, Pod, Policy, Rule, Which};
use super::view::View;
use crate::cluster::{Name, ObjectKey};

/// What is connected to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The pods' links, by name.
    pub links: BTreeMap<Box<str>, LocalLink>,
    /// The node's own addresses.
    pub node: BTreeSet<IpAddr>,
}

/// A pod's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLink {
    pub index: LinkIndex,
    pub addresses: Vec<IpAddr>,
}

/// One thing that policies tell apart about an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// It is the node's own.
    Node,
    /// A rule's peer is about it; the text is the peer's.
    Peer(Name),
    /// The pod there has this port, and a rule calls it by that name.
    Port(NamedPort),
}

/// All of them. Never empty where it stands for an identity.
pub type Features = Arc<BTreeSet<Feature>>;

/// What is wanted of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What the longest prefix of an address says about it. Without one there is nothing to say.
    pub addresses: BTreeMap<Prefix, Features>,
    pub pods: BTreeMap<LinkIndex, Wanted>,
}

/// What is wanted for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The pod is not known yet, or not any more: what holds for it goes on.
    Unknown,
    Known {
        ingress: Access,
        egress: Access,
    },
}

/// What may pass in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Not isolated: everything.
    Open,
    /// What one of these allows.
    Only(BTreeSet<Allow>),
}

/// Some peer, on some ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    /// `None` is everybody.
    pub who: Option<Features>,
    /// `IPPROTO_*`; `None` is every protocol, and every port.
    pub protocol: Option<u8>,
    pub port: PortPrefix,
}

const ALL_PORTS: PortPrefix = PortPrefix { base: 0, bits: 0 };

/// A pod of this node, and the policies that select it.
struct Selected<'a> {
    pod: &'a Pod,
    policies: Vec<&'a Policy>,
}

/// What `view` wants on this node.
pub fn compile(view: &View, local: &Local) -> Desired {
    let known = view.local();
    let mut selected = BTreeMap::new();
    let mut pods = BTreeMap::new();
    for (name, link) in &local.links {
        match known.get(&**name) {
            None if view.policies.is_empty() => {
                pods.insert(link.index, Wanted::OPEN);
            }
            None => {
                pods.insert(link.index, Wanted::Unknown);
            }
            Some((key, pod)) => {
                let policies = view.selecting(key, pod).map(|(_, policy)| policy).collect();
                selected.insert(link.index, Selected { pod, policies });
            }
        }
    }
    let used = Used::by(selected.values().flat_map(|it| it.policies.iter().copied()));
    let addresses = addresses(view, local, &used);
    let identities: BTreeSet<&Features> = addresses.values().collect();
    for (link, Selected { pod, policies }) in selected {
        let wanted = Wanted::Known {
            ingress: access(Direction::Ingress, &policies, &pod.ports, &identities),
            egress: access(Direction::Egress, &policies, &pod.ports, &identities),
        };
        pods.insert(link, wanted);
    }
    Desired { addresses, pods }
}

impl Wanted {
    pub const OPEN: Self = Self::Known {
        ingress: Access::Open,
        egress: Access::Open,
    };
}

/// What rules ask about addresses.
#[derive(Default)]
struct Used<'a> {
    peers: BTreeMap<Name, &'a Peer>,
    /// Names of ports, with their protocols, of those that are connected to.
    ports: BTreeSet<(&'a str, u8)>,
}

impl<'a> Used<'a> {
    fn by(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let mut used = Self::default();
        for policy in policies {
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
                used.peers.insert(peer.to_string().into(), peer);
            }
            let rules = policy.egress.iter().flatten();
            for ports in rules.flat_map(|rule| rule.ports.iter().flatten()) {
                if let Which::Named(name) = &ports.which {
                    used.ports.insert((name, ports.protocol));
                }
            }
        }
        used
    }

    /// What can be said of pods with these labels and ports.
    fn of_pod(&self, view: &View, key: &ObjectKey, pod: &Pod) -> BTreeSet<Feature> {
        let Some(namespace) = view.namespaces.get(&key.namespace) else {
            // Its namespace is not known yet, or not any more.
            return BTreeSet::new();
        };
        let peers = self.peers.iter().filter(|(_, peer)| match peer {
            Peer::Pods(peer) => peer.selects(&key.namespace, namespace, &pod.labels),
            Peer::Block(_) => false,
        });
        let ports = pod.ports.iter();
        let ports = ports.filter(|it| self.ports.contains(&(&*it.name, it.protocol)));
        let ports = ports.cloned().map(Feature::Port);
        peers
            .map(|(text, _)| Feature::Peer(text.clone()))
            .chain(ports)
            .collect()
    }

    /// What can be said of addresses in a prefix, which is no longer than those of the ranges that rules name.
    fn of_prefix(&self, prefix: &Prefix) -> impl Iterator<Item = Feature> {
        let blocks = self.peers.iter().filter(|(_, peer)| match peer {
            Peer::Pods(_) => false,
            Peer::Block(block) => {
                let has = |range: ipnet::IpNet| {
                    let range = Prefix::from(range);
                    range.is_v4() == prefix.is_v4() && range.covers(prefix)
                };
                has(block.range) && !block.except.iter().any(|range| has(*range))
            }
        });
        blocks.map(|(text, _)| Feature::Peer(text.clone()))
    }

    /// The prefixes at which an answer of [`Self::of_prefix`] begins or ends.
    fn edges(&self) -> BTreeSet<Prefix> {
        let mut edges = BTreeSet::new();
        for peer in self.peers.values() {
            if let Peer::Block(block) = peer {
                edges.insert(Prefix::from(block.range));
                edges.extend(block.except.iter().copied().map(Prefix::from));
            }
        }
        // No range of IPv6 means IPv4's addresses, which stand among its own.
        let v4 = Prefix::all_of_v4();
        if edges
            .iter()
            .any(|edge| edge.bits < v4.bits && edge.covers(&v4))
        {
            edges.insert(v4);
        }
        edges
    }
}

/// Everything that is to be said about addresses.
fn addresses(view: &View, local: &Local, used: &Used<'_>) -> BTreeMap<Prefix, Features> {
    let mut said: BTreeMap<Prefix, BTreeSet<Feature>> = BTreeMap::new();
    if used.peers.is_empty() && used.ports.is_empty() {
        // Nobody asks.
    } else {
        for (address, (key, pod)) in owners(view, local) {
            said.insert(address.into(), used.of_pod(view, key, pod));
        }
    }
    for address in &local.node {
        said.insert((*address).into(), BTreeSet::from([Feature::Node]));
    }
    for edge in used.edges() {
        said.entry(edge).or_default();
    }
    for (prefix, features) in &mut said {
        features.extend(used.of_prefix(prefix));
    }
    // What the next shorter prefix says anyway need not be said again.
    let lengths = Lengths::of(&said);
    let nothing = BTreeSet::new();
    let mut shared: BTreeSet<Features> = BTreeSet::new();
    let needed = said.iter().filter(|(prefix, features)| {
        let shorter = lengths.covering(&said, prefix, prefix.bits);
        *features != shorter.unwrap_or(&nothing)
    });
    needed
        .map(|(prefix, features)| {
            let known = shared.get(features).cloned();
            let features = known.unwrap_or_else(|| {
                let new = Arc::new(features.clone());
                shared.insert(new.clone());
                new
            });
            (*prefix, features)
        })
        .collect()
}

/// Which pod has which address. On this node the links say it; elsewhere the pods do, and the youngest is believed.
pub fn owners<'a>(view: &'a View, local: &Local) -> BTreeMap<IpAddr, (&'a ObjectKey, &'a Pod)> {
    let mut owners: BTreeMap<IpAddr, (&ObjectKey, &Pod)> = BTreeMap::new();
    for (key, pod) in &view.pods {
        if pod.link.is_some() {
            continue;
        }
        for address in &pod.addresses {
            let older = owners
                .get(address)
                .is_some_and(|(_, other)| other.created > pod.created);
            if !older {
                owners.insert(*address, (key, pod));
            }
        }
    }
    let known = view.local();
    for (name, link) in &local.links {
        for address in &link.addresses {
            owners.remove(address);
            if let Some(owner) = known.get(&**name) {
                owners.insert(*address, *owner);
            }
        }
    }
    owners
}

/// What the policies that select a pod allow in one direction.
fn access(
    direction: Direction,
    policies: &[&Policy],
    own: &[NamedPort],
    identities: &BTreeSet<&Features>,
) -> Access {
    let rules = |policy: &&'_ Policy| match direction {
        Direction::Ingress => policy.ingress.is_some(),
        Direction::Egress => policy.egress.is_some(),
    };
    let mut isolating = policies.iter().filter(|policy| rules(policy)).peekable();
    if isolating.peek().is_none() {
        return Access::Open;
    }
    let mut allowed = BTreeSet::new();
    for policy in isolating {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for rule in rules.iter().flatten() {
            rule_allows(direction, rule, own, identities, &mut allowed);
        }
    }
    let whole = |who: &Option<Features>| Allow {
        who: who.clone(),
        protocol: None,
        port: ALL_PORTS,
    };
    // A rule that allows a peer everything makes its others superfluous.
    let all = allowed.clone();
    allowed.retain(|it| {
        let everybody = it.who.is_some() && all.contains(&whole(&None));
        let everything = it.protocol.is_some() && all.contains(&whole(&it.who));
        !everybody && !everything
    });
    Access::Only(allowed)
}

fn rule_allows(
    direction: Direction,
    rule: &Rule,
    own: &[NamedPort],
    identities: &BTreeSet<&Features>,
    allowed: &mut BTreeSet<Allow>,
) {
    // The node's own addresses are allowed without a rule.
    let others = identities.iter().filter(|it| !it.contains(&Feature::Node));
    let matching: Vec<&Features> = match &rule.peers {
        None => others.copied().collect(),
        Some(peers) => {
            let peers = peers.iter().map(|it| Feature::Peer(it.to_string().into()));
            let peers: Vec<Feature> = peers.collect();
            let is_meant = |it: &&&Features| peers.iter().any(|peer| it.contains(peer));
            others.filter(is_meant).copied().collect()
        }
    };
    let who: Vec<Option<Features>> = match &rule.peers {
        None => vec![None],
        Some(_) => matching.iter().map(|it| Some((*it).clone())).collect(),
    };
    let mut allow = |who: &Option<Features>, protocol, port| {
        let who = who.clone();
        allowed.insert(Allow {
            who,
            protocol,
            port,
        });
    };
    let Some(ports) = &rule.ports else {
        who.iter().for_each(|who| allow(who, None, ALL_PORTS));
        return;
    };
    for ports in ports {
        let protocol = Some(ports.protocol);
        match &ports.which {
            Which::All => who.iter().for_each(|who| allow(who, protocol, ALL_PORTS)),
            Which::Range(first, last) => {
                for port in prefixes(*first, *last) {
                    who.iter().for_each(|who| allow(who, protocol, port));
                }
            }
            Which::Named(name) => {
                let is_meant = |it: &NamedPort| it.name == *name && it.protocol == ports.protocol;
                let exactly = |port| PortPrefix {
                    base: port,
                    bits: 16,
                };
                match direction {
                    Direction::Ingress => {
                        for port in own.iter().filter(|it| is_meant(it)) {
                            let port = exactly(port.port);
                            who.iter().for_each(|who| allow(who, protocol, port));
                        }
                    }
                    Direction::Egress => {
                        for peer in &matching {
                            for feature in peer.iter() {
                                if let Feature::Port(port) = feature
                                    && is_meant(port)
                                {
                                    let who = Some((*peer).clone());
                                    allow(&who, protocol, exactly(port.port));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
