//! Which addresses are to be announced, and by which nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::cluster::{Change, Endpoint, Name, ObjectKey, View};

/// The nodes that may announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `externalTrafficPolicy: Cluster`: each of them forwards.
    Any,
    /// `externalTrafficPolicy: Local`: those with a ready endpoint, or, where none is ready anywhere, with one that ends and
    /// serves still.
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
        let nodes = |serves: fn(&Endpoint) -> bool| -> BTreeSet<Name> {
            let endpoints = view.slices_for(key).flat_map(|slice| &slice.endpoints);
            let those = endpoints.filter(|endpoint| serves(endpoint));
            those.filter_map(|it| it.node.clone()).collect()
        };
        let ready = nodes(|endpoint| endpoint.ready);
        Who::Nodes(match ready.is_empty() {
            true => nodes(|endpoint| endpoint.serving && endpoint.terminating),
            false => ready,
        })
    } else {
        Who::Any
    };
    Some((exposed.load_balancer_ips.clone(), who))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Exposed, Node, Service, Slice};

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
        let leaving = Endpoint {
            serving: true,
            terminating: true,
            ..endpoint("b", false)
        };
        let slice = |endpoints| Slice {
            service: "web".into(),
            endpoints,
            ..Slice::default()
        };
        let both = slice(vec![endpoint("a", true), leaving.clone()]);
        view.set_slice(ObjectKey::new("ns", "web-1"), Some(both));
        assert_eq!(who(&view), Some(Who::Nodes(["a".into()].into())));
        let last = slice(vec![endpoint("a", false), leaving]);
        view.set_slice(ObjectKey::new("ns", "web-1"), Some(last));
        assert_eq!(who(&view), Some(Who::Nodes(["b".into()].into())));
        let one = slice(vec![endpoint("a", true), endpoint("b", false)]);
        view.set_slice(ObjectKey::new("ns", "web-1"), Some(one));

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
