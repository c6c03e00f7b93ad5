//! From what is known of policies and pods to what each local pod may hear and say. Pure.
//!
//! An address is to policies what they can tell about it: its [`Features`]. Addresses with equal features are one peer, so
//! rules do not grow with the number of pods. Only policies that select a pod of this node count.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::policy::Direction;

use super::blocks::Blocks;
use super::ports::{PortPrefix, prefixes};
use super::prefix::{Lengths, Prefix};
use super::types::{NamedPort, Peer, Pod, PodPeer, Policy, Rule, Which};
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
    let identities = Identities::of(addresses.values().collect());
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
    pods: BTreeMap<Name, &'a PodPeer>,
    blocks: Blocks,
    /// Names of ports, with their protocols, of those that are connected to.
    ports: BTreeSet<(&'a str, u8)>,
}

impl<'a> Used<'a> {
    fn by(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let mut used = Self::default();
        let mut blocks = BTreeMap::new();
        for policy in policies {
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            for peer in rules.flat_map(|rule| rule.peers.iter().flatten()) {
                let text = peer.to_string().into();
                match peer {
                    Peer::Pods(peer) => drop(used.pods.insert(text, peer)),
                    Peer::Block(block) => drop(blocks.insert(text, block)),
                }
            }
            let rules = policy.egress.iter().flatten();
            for ports in rules.flat_map(|rule| rule.ports.iter().flatten()) {
                if let Which::Named(name) = &ports.which {
                    used.ports.insert((name, ports.protocol));
                }
            }
        }
        used.blocks = Blocks::of(blocks);
        used
    }

    fn asks_nothing(&self) -> bool {
        self.pods.is_empty() && self.blocks.is_empty() && self.ports.is_empty()
    }

    /// What can be said of pods with these labels and ports.
    fn of_pod(&self, view: &View, key: &ObjectKey, pod: &Pod) -> BTreeSet<Feature> {
        let Some(namespace) = view.namespaces.get(&key.namespace) else {
            // Its namespace is not known yet, or not any more.
            return BTreeSet::new();
        };
        let peers = self.pods.iter();
        let peers = peers.filter(|(_, peer)| peer.selects(&key.namespace, namespace, &pod.labels));
        let ports = pod.ports.iter();
        let ports = ports.filter(|it| self.ports.contains(&(&*it.name, it.protocol)));
        let ports = ports.cloned().map(Feature::Port);
        peers
            .map(|(text, _)| Feature::Peer(text.clone()))
            .chain(ports)
            .collect()
    }
}

/// Everything that is to be said about addresses.
fn addresses(view: &View, local: &Local, used: &Used<'_>) -> BTreeMap<Prefix, Features> {
    let mut said: BTreeMap<Prefix, BTreeSet<Feature>> = BTreeMap::new();
    if used.asks_nothing() {
        // Nobody asks.
    } else {
        for (address, (key, pod)) in owners(view, local) {
            said.insert(address.into(), used.of_pod(view, key, pod));
        }
    }
    for address in &local.node {
        said.insert((*address).into(), BTreeSet::from([Feature::Node]));
    }
    for edge in used.blocks.edges() {
        said.entry(edge).or_default();
    }
    for (prefix, features) in &mut said {
        features.extend(used.blocks.about(prefix).map(Feature::Peer));
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

/// What the addresses are that rules may be about, found by what is said of them.
struct Identities<'a> {
    about: BTreeMap<&'a Feature, Vec<&'a Features>>,
    with_ports: Vec<&'a Features>,
}

impl<'a> Identities<'a> {
    fn of(all: BTreeSet<&'a Features>) -> Self {
        let mut this = Self {
            about: BTreeMap::new(),
            with_ports: Vec::new(),
        };
        // The node's own addresses are allowed without a rule.
        for features in all.into_iter().filter(|it| !it.contains(&Feature::Node)) {
            for feature in features.iter() {
                this.about.entry(feature).or_default().push(features);
            }
            if features.iter().any(|it| matches!(it, Feature::Port(_))) {
                this.with_ports.push(features);
            }
        }
        this
    }

    /// Whom one of these peers is about.
    fn about(&self, peers: &[Peer]) -> Vec<&'a Features> {
        let features = peers.iter().map(|it| Feature::Peer(it.to_string().into()));
        let found = features.filter_map(|feature| self.about.get(&feature));
        let found: BTreeSet<&Features> = found.flatten().copied().collect();
        found.into_iter().collect()
    }
}

/// What the policies that select a pod allow in one direction.
fn access(
    direction: Direction,
    policies: &[&Policy],
    own: &[NamedPort],
    identities: &Identities<'_>,
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
    identities: &Identities<'_>,
    allowed: &mut BTreeSet<Allow>,
) {
    let matching = rule.peers.as_ref().map(|peers| identities.about(peers));
    let who: Vec<Option<Features>> = match &matching {
        None => vec![None],
        Some(matching) => matching.iter().map(|it| Some((*it).clone())).collect(),
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
                        let peers = matching.as_ref().unwrap_or(&identities.with_ports);
                        for peer in peers {
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
