//! Which addresses are to be announced, and by which nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::cluster::{Change, Name, ObjectKey, View};

/// The nodes that may announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `externalTrafficPolicy: Cluster`: each of them forwards.
    Any,
    /// `externalTrafficPolicy: Local`: those with a ready endpoint.
    Nodes(BTreeSet<Name>),
}

impl Who {
    pub(super) fn includes(&self, node: &str) -> bool {
        match self {
            Who::Any => true,
            Who::Nodes(nodes) => nodes.contains(node),
        }
    }
}

/// The load balancers' addresses of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    services: BTreeMap<ObjectKey, (Vec<IpAddr>, Who)>,
    /// The nodes' own addresses: whoever writes a Service's status must not take one of them.
    nodes: BTreeSet<IpAddr>,
}

impl Wanted {
    /// Takes over what the view says of what changed.
    pub(super) fn update<'a>(
        &mut self,
        view: &View,
        changes: impl IntoIterator<Item = &'a Change>,
    ) {
        let mut nodes_changed = false;
        for change in changes {
            match change {
                Change::Service(key) => {
                    match read(view, key) {
                        Some(found) => self.services.insert(key.clone(), found),
                        None => self.services.remove(key),
                    };
                }
                Change::Node(_) => nodes_changed = true,
                Change::Synced | Change::HostPortsKnown => {}
            }
        }
        if nodes_changed {
            let nodes = view.nodes.values();
            self.nodes = nodes.flat_map(|node| node.internal_ips.clone()).collect();
        }
    }

    /// The addresses. One that two services have, which the control plane never gives, is the first one's.
    pub(super) fn addresses(&self) -> BTreeMap<IpAddr, &Who> {
        let mut all = BTreeMap::new();
        for (addresses, who) in self.services.values() {
            for address in addresses.iter().filter(|it| !self.nodes.contains(it)) {
                all.entry(*address).or_insert(who);
            }
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

fn read(view: &View, key: &ObjectKey) -> Option<(Vec<IpAddr>, Who)> {
    let service = view.services.get(key)?;
    let exposed = service.exposed.as_ref()?;
    let elsewhere = service.balanced_elsewhere || service.proxy_name.is_some();
    if elsewhere || service.not_for_proxies || exposed.load_balancer_ips.is_empty() {
        return None;
    }
    let who = if exposed.local {
        let endpoints = view.slices_for(key).flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        Who::Nodes(ready.filter_map(|endpoint| endpoint.node.clone()).collect())
    } else {
        Who::Any
    };
    Some((exposed.load_balancer_ips.clone(), who))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Endpoint, Exposed, Node, Service, Slice};

    fn balancer(local: bool) -> Service {
        let exposed = Exposed {
            load_balancer_ips: vec!["192.0.2.1".parse().unwrap()],
            local,
            ..Exposed::default()
        };
        Service {
            exposed: Some(Box::new(exposed)),
            ..Service::default()
        }
    }

    fn who(view: &View) -> Option<Who> {
        let mut wanted = Wanted::default();
        let changes = [
            Change::Service(ObjectKey::new("ns", "web")),
            Change::Node("a".into()),
        ];
        wanted.update(view, &changes);
        wanted.addresses().into_values().next().cloned()
    }

    #[test]
    fn any_node_or_those_with_a_ready_endpoint() {
        let mut view = View::default();
        assert_eq!(who(&view), None);
        let key = ObjectKey::new("ns", "web");
        view.set_service(key.clone(), Some(balancer(false)));
        assert_eq!(who(&view), Some(Who::Any));

        let endpoint = |node: &str, ready| Endpoint {
            node: Some(node.into()),
            ready,
            ..Endpoint::default()
        };
        let slice = Slice {
            service: "web".into(),
            endpoints: vec![endpoint("a", true), endpoint("b", false)],
            ..Slice::default()
        };
        view.set_slice(ObjectKey::new("ns", "web-1"), Some(slice));
        view.set_service(key.clone(), Some(balancer(true)));
        assert_eq!(who(&view), Some(Who::Nodes(["a".into()].into())));

        let taken = Node {
            internal_ips: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        view.set_node("a".into(), Some(taken));
        assert_eq!(who(&view), None, "a node has it");
        view.set_node("a".into(), None);

        let elsewhere = Service {
            balanced_elsewhere: true,
            ..balancer(false)
        };
        view.set_service(key, Some(elsewhere));
        assert_eq!(who(&view), None, "another load balancer announces it");
    }
}
