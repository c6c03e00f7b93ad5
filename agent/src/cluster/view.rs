//! Everything known of the cluster, and how one object's change alters it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::types::{HostPorts, Name, Node, ObjectKey, Service, Slice};

/// What changed in a [`View`]. It names the object; its state is read from the view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// The Service or one of its EndpointSlices, or the host ports of a pod of this node.
    Service(ObjectKey),
    Node(Name),
    /// Every kind has been listed in full: from now on an absence means something.
    Synced,
    /// So it is with the host ports of this node's pods.
    HostPortsKnown,
}

/// Everything known. `synced` says whether the first full list of each kind has arrived: before that nothing may be
/// concluded from an absence.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub services: BTreeMap<ObjectKey, Arc<Service>>,
    pub slices: BTreeMap<ObjectKey, Arc<Slice>>,
    /// Names of each service's slices, sorted, so that a change costs what changed.
    pub slices_of: BTreeMap<ObjectKey, Vec<Name>>,
    pub nodes: BTreeMap<Name, Arc<Node>>,
    pub synced: bool,
    /// Of this node's pods that run, under [`ObjectKey::of_pod`].
    pub host_ports: BTreeMap<ObjectKey, Arc<HostPorts>>,
    /// Whether every pod of this node has said what it has.
    pub host_ports_known: bool,
    /// At which addresses others reach this node; `None` until they were looked at.
    pub own_addresses: Option<BTreeSet<IpAddr>>,
}

impl View {
    /// The slices of one service, in the order of their names.
    pub fn slices_for<'a>(
        &'a self,
        service: &'a ObjectKey,
    ) -> impl Iterator<Item = &'a Arc<Slice>> + 'a {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(move |name| {
                self.slices.get(&ObjectKey {
                    namespace: service.namespace.clone(),
                    name: name.clone(),
                })
            })
    }

    /// Puts or removes a Service. Returns what changed; nothing when it was already so.
    pub fn set_service(&mut self, key: ObjectKey, service: Option<Service>) -> Option<Change> {
        replace(&mut self.services, &key, service).then_some(Change::Service(key))
    }

    /// Puts or removes a Node.
    pub fn set_node(&mut self, name: Name, node: Option<Node>) -> Option<Change> {
        replace(&mut self.nodes, &name, node).then_some(Change::Node(name))
    }

    /// Puts or removes the host ports of a pod.
    pub fn set_host_ports(&mut self, key: ObjectKey, ports: Option<HostPorts>) -> Option<Change> {
        replace(&mut self.host_ports, &key, ports).then_some(Change::Service(key))
    }

    /// From now on pods that are not there have no host ports.
    pub fn set_host_ports_known(&mut self) -> Option<Change> {
        let first = !std::mem::replace(&mut self.host_ports_known, true);
        first.then_some(Change::HostPortsKnown)
    }

    /// Says at which addresses others reach this node. That decides which host ports can be.
    pub fn set_own_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Vec<Change> {
        if self.own_addresses.as_ref() == Some(&addresses) {
            return Vec::new();
        }
        self.own_addresses = Some(addresses);
        let pods = self.host_ports.keys().cloned();
        pods.map(Change::Service).collect()
    }

    /// Puts or removes an EndpointSlice. A slice that moved to another service changes both.
    pub fn set_slice(&mut self, key: ObjectKey, slice: Option<Slice>) -> Vec<Change> {
        let before = self.slices.get(&key).map(|old| old.service.clone());
        let after = slice.as_ref().map(|new| new.service.clone());
        if !replace(&mut self.slices, &key, slice) {
            return Vec::new();
        }
        let owner = |name: Name| ObjectKey {
            namespace: key.namespace.clone(),
            name,
        };
        if before != after {
            if let Some(name) = before.clone() {
                self.unlink(&owner(name), &key.name);
            }
            if let Some(name) = after.clone() {
                let names = self.slices_of.entry(owner(name)).or_default();
                if let Err(at) = names.binary_search(&key.name) {
                    names.insert(at, key.name.clone());
                }
            }
        }
        let moved_from = if before == after { None } else { before };
        moved_from
            .into_iter()
            .chain(after)
            .map(|name| Change::Service(owner(name)))
            .collect()
    }

    fn unlink(&mut self, service: &ObjectKey, slice: &Name) {
        if let Some(names) = self.slices_of.get_mut(service) {
            names.retain(|name| name != slice);
            if names.is_empty() {
                self.slices_of.remove(service);
            }
        }
    }
}

/// Returns whether the map is different now.
fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut BTreeMap<K, Arc<V>>,
    key: &K,
    value: Option<V>,
) -> bool {
    match value {
        None => map.remove(key).is_some(),
        Some(new) => match map.get_mut(key) {
            Some(old) if **old == new => false,
            Some(old) => {
                *old = Arc::new(new);
                true
            }
            None => {
                map.insert(key.clone(), Arc::new(new));
                true
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: &str) -> Slice {
        Slice {
            service: service.into(),
            ..Slice::default()
        }
    }

    fn service_changed(name: &str) -> Change {
        Change::Service(ObjectKey::new("ns", name))
    }

    #[test]
    fn the_same_object_again_is_no_change() {
        let mut view = View::default();
        let key = ObjectKey::new("ns", "web");
        assert_eq!(
            view.set_service(key.clone(), Some(Service::default())),
            Some(service_changed("web"))
        );
        assert_eq!(
            view.set_service(key.clone(), Some(Service::default())),
            None
        );
        assert_eq!(
            view.set_service(key.clone(), None),
            Some(service_changed("web"))
        );
        assert_eq!(view.set_service(key, None), None);
    }

    #[test]
    fn a_slice_change_is_a_change_of_its_service() {
        let mut view = View::default();
        let (one, two) = (ObjectKey::new("ns", "web-1"), ObjectKey::new("ns", "web-2"));
        assert_eq!(
            view.set_slice(two.clone(), Some(slice("web"))),
            [service_changed("web")]
        );
        assert_eq!(
            view.set_slice(one.clone(), Some(slice("web"))),
            [service_changed("web")]
        );
        assert!(view.set_slice(one.clone(), Some(slice("web"))).is_empty());
        assert_eq!(view.slices_for(&ObjectKey::new("ns", "web")).count(), 2);
        assert_eq!(
            view.slices_of[&ObjectKey::new("ns", "web")],
            ["web-1".into(), "web-2".into()]
        );

        assert_eq!(view.set_slice(one, None), [service_changed("web")]);
        assert_eq!(view.set_slice(two, None), [service_changed("web")]);
        assert!(view.slices_of.is_empty());
    }

    #[test]
    fn a_slice_that_moves_changes_both_services() {
        let mut view = View::default();
        let key = ObjectKey::new("ns", "s");
        view.set_slice(key.clone(), Some(slice("a")));
        assert_eq!(
            view.set_slice(key, Some(slice("b"))),
            [service_changed("a"), service_changed("b")]
        );
        assert_eq!(view.slices_for(&ObjectKey::new("ns", "a")).count(), 0);
        assert_eq!(view.slices_for(&ObjectKey::new("ns", "b")).count(), 1);
    }
}
