//! The cluster's names for what the maps hold as addresses. Pure.

use std::net::IpAddr;

use agent_ebpf::abi::{Address, Port, ServiceKey, TCP, UDP};

use crate::cluster::{Endpoint, Name, Node, ObjectKey, View};
use crate::proxy::{LbState, Live};

/// Looks names up where they are; nothing is indexed, so it costs nothing to make.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    pub view: &'a View,
    pub state: &'a LbState,
}

/// Whom a backend's address belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// namespace/name
    pub(super) pod: String,
    pub(super) node: String,
}

impl<'a> Names<'a> {
    /// What the proxy knows of a dialled address.
    pub(super) fn frontend(&self, dialled: &ServiceKey) -> Option<&'a Live> {
        self.state.dialled(dialled)
    }

    /// The service that has a dialled address, and its port's name.
    pub(super) fn service(&self, dialled: &ServiceKey) -> Option<(&'a ObjectKey, &'a Name)> {
        let live = self.frontend(dialled)?;
        Some((live.owner.as_ref()?, &live.port_name))
    }

    /// Whom the cluster says a service's backend is.
    pub(super) fn peer(&self, service: Option<&ObjectKey>, address: Address) -> Peer {
        if let Some(service) = service
            && let Some(pod) = service.pod_name()
        {
            return Peer {
                pod: format!("{}/{pod}", service.namespace),
                node: self.node_of(address),
            };
        }
        let Some((service, endpoint)) =
            service.and_then(|service| Some((service, self.endpoint(service, address.to_ip())?)))
        else {
            return Peer::default();
        };
        let pod = endpoint.pod.as_ref();
        Peer {
            pod: pod.map_or_else(String::new, |pod| format!("{}/{pod}", service.namespace)),
            node: text(endpoint.node.as_ref()),
        }
    }

    /// The node whose pods' range an address is in.
    fn node_of(&self, address: Address) -> String {
        let ip = address.to_ip();
        let mut nodes = self.view.nodes.iter();
        let has = |node: &Node| node.pod_cidrs.iter().any(|range| range.contains(&ip));
        let found = nodes.find(|(_, node)| has(node));
        text(found.map(|(name, _)| name))
    }

    pub(super) fn endpoint(&self, service: &ObjectKey, address: IpAddr) -> Option<&'a Endpoint> {
        let names = self.view.slices_of.get(service)?;
        names
            .iter()
            .filter_map(|name| {
                self.view.slices.get(&ObjectKey {
                    namespace: service.namespace.clone(),
                    name: name.clone(),
                })
            })
            .flat_map(|slice| &slice.endpoints)
            .find(|endpoint| endpoint.addresses.contains(&address))
    }
}

pub(super) fn text(name: Option<&Name>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

/// `192.0.2.1:80`, `[2001:db8::1]:80`.
pub(super) fn socket_address(address: Address, port: Port) -> String {
    std::net::SocketAddr::new(address.to_ip(), u16::from_be_bytes(port)).to_string()
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        other => other.to_string(),
    }
}

/// Whether `name` is the object that a filter asks for: `namespace/name`, or `name` in `default`. An empty filter takes
/// everything.
pub(super) fn is_asked_for(filter: &str, name: &str) -> bool {
    filter.is_empty()
        || filter == name
        || name
            .strip_prefix("default/")
            .is_some_and(|name| name == filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_without_a_namespace_means_default() {
        assert!(is_asked_for("", "shop/web"));
        assert!(is_asked_for("shop/web", "shop/web"));
        assert!(is_asked_for("web", "default/web"));
        assert!(!is_asked_for("web", "shop/web"));
        assert!(!is_asked_for("default/web", ""));
    }

    #[test]
    fn addresses_are_written_as_people_dial_them() {
        let v4 = Address::from(IpAddr::from([10, 96, 0, 1]));
        assert_eq!(socket_address(v4, 80_u16.to_be_bytes()), "10.96.0.1:80");
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(
            socket_address(v6.into(), 80_u16.to_be_bytes()),
            "[fd00::1]:80"
        );
    }
}
