//! From the API's objects to the slim ones. Pure.
//!
//! What a policy says that cannot be read allows nothing: who wrote it meant to restrict.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use agent_ebpf::abi::{TCP, UDP};
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::Selector;

use super::types::{
    Block, Labels, NamedPort, Peer, Pod, PodPeer, Policy, Ports, Rule, SCTP, Which,
};
use crate::cluster::{Name, ObjectKey};
use crate::network::addresses::veth_name;
use crate::pod::spec::CONFIG_MIRROR;

/// Upstream's API server puts this label on every namespace; not every other one does.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Keeps one copy of what many objects repeat.
#[derive(Debug)]
pub struct Shared<T: ?Sized + Hash + Eq>(HashSet<Arc<T>>);

impl<T: ?Sized + Hash + Eq> Default for Shared<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: ?Sized + Hash + Eq> Shared<T> {
    fn get(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.0.get(&value) {
            return known.clone();
        }
        // Before the set would grow its table, drop what nothing uses any more.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|known| Arc::strong_count(known) > 1);
        }
        self.0.insert(value.clone());
        value
    }
}

/// What slim objects share.
#[derive(Debug, Default)]
pub struct Common {
    names: Shared<str>,
    labels: Shared<BTreeMap<String, String>>,
    ports: Shared<[NamedPort]>,
}

impl Common {
    /// A name that many objects repeat.
    pub fn name(&mut self, name: &str) -> Name {
        self.names.get(name.into())
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) -> Labels {
        self.labels
            .get(Arc::new(labels.cloned().unwrap_or_default()))
    }

    /// The key of a namespaced object; `None` when the server sent one without a name.
    pub fn key(
        &mut self,
        meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    ) -> Option<ObjectKey> {
        Some(ObjectKey {
            namespace: self.name(meta.namespace.as_deref().unwrap_or_default()),
            name: meta.name.as_deref()?.into(),
        })
    }
}

/// A namespace's labels.
pub fn namespace(object: &core::Namespace, common: &mut Common) -> Labels {
    let mut labels = object.metadata.labels.clone().unwrap_or_default();
    if let Some(name) = &object.metadata.name {
        labels.insert(NAME_LABEL.to_owned(), name.clone());
    }
    common.labels(Some(&labels))
}

/// `None` for a pod that no policy is about: it has ended, or has the node's network. `node` is this node.
pub fn pod(object: &core::Pod, node: &str, common: &mut Common) -> Option<Pod> {
    let (spec, status) = (object.spec.as_ref()?, object.status.as_ref());
    let phase = status.and_then(|status| status.phase.as_deref());
    if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let meta = &object.metadata;
    let here = spec.node_name.as_deref() == Some(node);
    let addresses = status
        .and_then(|status| status.pod_ips.as_ref())
        .into_iter()
        .flatten()
        .map(|ip| ip.ip.as_str());
    Some(Pod {
        labels: common.labels(meta.labels.as_ref()),
        ports: named_ports(spec, common),
        addresses: addresses.filter_map(|text| text.parse().ok()).collect(),
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        link: uid_on_node(meta)
            .filter(|_| here)
            .map(|uid| veth_name(uid).into()),
    })
}

/// The uid under which the pod's node has it: of a mirror, that of the pod that it shows.
fn uid_on_node(meta: &ObjectMeta) -> Option<&str> {
    let annotations = meta.annotations.as_ref();
    let shown = annotations.and_then(|all| all.get(CONFIG_MIRROR));
    shown.or(meta.uid.as_ref()).map(String::as_str)
}

fn named_ports(spec: &core::PodSpec, common: &mut Common) -> Arc<[NamedPort]> {
    // Init containers that go on are sidecars, and have ports, too.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let mut ports: Vec<NamedPort> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(NamedPort {
                name: common.name(port.name.as_deref()?),
                protocol: protocol(port.protocol.as_deref())?,
                port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    common.ports.get(ports.into())
}

/// A policy, and what of it could not be read.
pub fn policy(object: &networking::NetworkPolicy, common: &mut Common) -> (Policy, Vec<String>) {
    let mut reader = Reader {
        namespace: common.name(object.metadata.namespace.as_deref().unwrap_or_default()),
        unread: Vec::new(),
    };
    let spec = object.spec.clone().unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    // What the API server fills in.
    let is_about = |kind: &str| match types.is_empty() {
        true => kind == "Ingress" || !egress.is_empty(),
        false => types.iter().any(|it| it == kind),
    };
    let (ingress_too, egress_too) = (is_about("Ingress"), is_about("Egress"));
    let ingress = spec.ingress.unwrap_or_default();
    let policy = Policy {
        // One that cannot be read is about all pods: they are closed rather than open.
        pods: reader
            .selector("podSelector", spec.pod_selector)
            .unwrap_or_default(),
        ingress: ingress_too.then(|| {
            let rules = ingress.into_iter();
            rules
                .map(|rule| reader.rule(rule.from, rule.ports))
                .collect()
        }),
        egress: egress_too.then(|| {
            let rules = egress.into_iter();
            rules.map(|rule| reader.rule(rule.to, rule.ports)).collect()
        }),
    };
    (policy, reader.unread)
}

/// Reads one policy, and notes what it cannot read.
struct Reader {
    namespace: Name,
    unread: Vec<String>,
}

impl Reader {
    fn rule(
        &mut self,
        peers: Option<Vec<networking::NetworkPolicyPeer>>,
        ports: Option<Vec<networking::NetworkPolicyPort>>,
    ) -> Rule {
        let some = |list: &usize| *list > 0;
        let peers = peers.filter(|list| some(&list.len()));
        let ports = ports.filter(|list| some(&list.len()));
        Rule {
            peers: peers.map(|list| list.into_iter().filter_map(|it| self.peer(it)).collect()),
            ports: ports.map(|list| list.into_iter().filter_map(|it| self.ports(it)).collect()),
        }
    }

    fn peer(&mut self, peer: networking::NetworkPolicyPeer) -> Option<Peer> {
        if let Some(block) = peer.ip_block {
            return self.block(block).map(Peer::Block);
        }
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
            self.unread.push("a peer that names nobody".to_owned());
            return None;
        }
        let namespaces = match peer.namespace_selector {
            None => None,
            some => Some(self.selector("namespaceSelector", some)?),
        };
        Some(Peer::Pods(PodPeer {
            namespace: self.namespace.clone(),
            namespaces,
            pods: self.selector("podSelector", peer.pod_selector)?,
        }))
    }

    /// No selector and an empty one select everything.
    fn selector(&mut self, what: &str, selector: Option<LabelSelector>) -> Option<Selector> {
        match Selector::try_from(selector.unwrap_or_default()) {
            Ok(selector) => Some(selector),
            Err(error) => {
                self.unread.push(format!("{what}: {error}"));
                None
            }
        }
    }

    fn block(&mut self, block: networking::IPBlock) -> Option<Block> {
        let mut parse = |text: &str| match text.parse::<IpNet>() {
            Ok(range) => Some(range.trunc()),
            Err(_) => {
                self.unread.push(format!("ipBlock {text}"));
                None
            }
        };
        let range = parse(&block.cidr)?;
        let texts = block.except.unwrap_or_default();
        let except: Option<Vec<IpNet>> = texts.iter().map(|text| parse(text)).collect();
        let mut except = except?;
        except.sort();
        except.dedup();
        Some(Block { range, except })
    }

    fn ports(&mut self, port: networking::NetworkPolicyPort) -> Option<Ports> {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let which = match (&port.port, port.end_port) {
            (None, _) => Some(Which::All),
            (Some(IntOrString::String(name)), _) => Some(Which::Named(name.as_str().into())),
            (Some(IntOrString::Int(first)), last) => {
                let range = number(*first).zip(number(last.unwrap_or(*first)));
                range.map(|(first, last)| Which::Range(first, last))
            }
        };
        let ports = protocol(port.protocol.as_deref())
            .zip(which)
            .map(|(protocol, which)| Ports { protocol, which });
        if ports.is_none() {
            self.unread.push(format!("port {port:?}"));
        }
        ports
    }
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mirrors_link_is_that_of_the_pod_that_it_shows() {
        let link = |annotations: serde_json::Value| {
            let object = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "of-the-api", "annotations": annotations},
                "spec": {"nodeName": "here", "containers": []},
            });
            let object: core::Pod = serde_json::from_value(object).unwrap();
            pod(&object, "here", &mut Common::default()).unwrap().link
        };
        assert_eq!(link(json!({})), Some(veth_name("of-the-api").into()));
        assert_eq!(
            link(json!({CONFIG_MIRROR: "hash"})),
            Some(veth_name("hash").into())
        );
    }
}
