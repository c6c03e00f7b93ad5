//! The slim objects: of policies, namespaces and pods only what decides on a packet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use kube::core::{Selector, SelectorExt as _};

use crate::cluster::Name;

/// The labels of an object. Objects with equal labels share them.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Which pods of the policy's namespace it is about.
    pub pods: Selector,
    /// What it lets in; `None` when it is not about ingress.
    pub ingress: Option<Vec<Rule>>,
    /// What it lets out; `None` when it is not about egress.
    pub egress: Option<Vec<Rule>>,
}

/// One of a policy's rules: who, and on which ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `None` is everybody.
    pub peers: Option<Vec<Peer>>,
    /// `None` is everything, also what has no ports.
    pub ports: Option<Vec<Ports>>,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    Pods(PodPeer),
    Block(Block),
}

/// Pods, by their labels and their namespace's.
#[derive(Clone, Debug, PartialEq)]
pub struct PodPeer {
    /// Without a selector it is this one.
    pub namespace: Name,
    pub namespaces: Option<Selector>,
    pub pods: Selector,
}

impl PodPeer {
    /// Whether it is about the pods with these labels in a namespace.
    pub fn selects(&self, namespace: &str, of_namespace: &Labels, of_pod: &Labels) -> bool {
        let there = match &self.namespaces {
            None => *self.namespace == *namespace,
            Some(selector) => selector.matches(of_namespace),
        };
        there && self.pods.matches(of_pod)
    }
}

/// Addresses in `range`, but for those in `except`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    pub range: IpNet,
    pub except: Vec<IpNet>,
}

/// Ports that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// `IPPROTO_*`.
    pub protocol: u8,
    pub which: Which,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    All,
    /// From the first to the last, in host order.
    Range(u16, u16),
    /// The port that whoever is connected to calls so.
    Named(Name),
}

/// A port of a pod's container that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: Name,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// In host order.
    pub port: u16,
}

/// A pod that has not ended and has a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub labels: Labels,
    pub ports: Arc<[NamedPort]>,
    /// As its status says; none before it is connected.
    pub addresses: Vec<IpAddr>,
    /// When it was made, in seconds since 1970: of two that claim one address, the younger has it.
    pub created: i64,
    /// The name of its link, when it runs on this node.
    pub link: Option<Box<str>>,
}

/// Says whom it is about in one line: equal text is the same peer.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(peer) => peer.fmt(f),
            Self::Block(block) => block.fmt(f),
        }
    }
}

impl fmt::Display for PodPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pods.selects_all() {
            true => f.write_str("all pods")?,
            false => write!(f, "pods {}", self.pods)?,
        }
        match &self.namespaces {
            None => write!(f, " in namespace {}", self.namespace),
            Some(all) if all.selects_all() => f.write_str(" in all namespaces"),
            Some(selector) => write!(f, " in namespaces {selector}"),
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range)?;
        for (index, range) in self.except.iter().enumerate() {
            let word = if index == 0 { " except" } else { "," };
            write!(f, "{word} {range}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = protocol_name(self.protocol);
        match &self.which {
            Which::All => write!(f, "all of {protocol}"),
            Which::Range(first, last) if first == last => write!(f, "{first}/{protocol}"),
            Which::Range(first, last) => write!(f, "{first}-{last}/{protocol}"),
            Which::Named(name) => write!(f, "{name}/{protocol}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.peers_text(), self.ports_text())
    }
}

impl Rule {
    /// Whom it is about, for people.
    pub fn peers_text(&self) -> String {
        list(self.peers.as_deref(), "everybody")
    }

    /// Which ports it is about, for people.
    pub fn ports_text(&self) -> String {
        list(self.ports.as_deref(), "all ports and protocols")
    }
}

fn list<T: fmt::Display>(list: Option<&[T]>, all: &str) -> String {
    let texts = |list: &[T]| list.iter().map(T::to_string).collect::<Vec<_>>();
    match list.map(texts) {
        None => all.to_owned(),
        Some(texts) if texts.is_empty() => "nothing that can be read".to_owned(),
        Some(texts) => texts.join("; "),
    }
}

/// `IPPROTO_SCTP`.
pub const SCTP: u8 = 132;

/// What people call a protocol.
pub fn protocol_name(number: u8) -> String {
    match number {
        agent_ebpf::abi::TCP => "TCP".to_owned(),
        agent_ebpf::abi::UDP => "UDP".to_owned(),
        SCTP => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}
