//! Host ports: a pod's ports at the addresses of its node, as if a service of the node's own led to that one pod. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::abi::{SHARE_ONE, Scope, ServiceKey};

use super::{AddressKind, Backend, Class, Frontend, Preference, Target, number};
use crate::cluster::{HostPort, Ignored, Leftovers, ObjectKey, View, Why};

const BOTH: &[Scope] = &[Scope::CLUSTER, Scope::EXTERNAL];
const INSIDE: &[Scope] = &[Scope::CLUSTER];

/// What the host ports of the pod `key` look like; nothing when it has none, or does not run.
pub(super) fn desired(view: &View, key: &ObjectKey) -> (Vec<Frontend>, Vec<Ignored>) {
    let (mut frontends, mut leftovers) = (Vec::new(), Leftovers::default());
    let Some(pod) = view.host_ports.get(key) else {
        return (frontends, Vec::new());
    };
    for port in &pod.ports {
        let Some(protocol) = number(port.protocol) else {
            let what = format_args!("{}/{}", port.port, port.protocol);
            leftovers.add(Why::Protocol, what);
            continue;
        };
        for (address, scopes) in addresses(port, view.own_addresses.as_ref(), &mut leftovers) {
            let mut of_pod = pod.addresses.iter();
            let Some(target) = of_pod.find(|ip| ip.is_ipv4() == address.is_ipv4()) else {
                if let Some(asked) = port.address {
                    leftovers.add(Why::HostAddressFamily, asked);
                }
                continue;
            };
            let backend = Backend {
                class: Class::Local,
                target: Target {
                    address: (*target).into(),
                    port: port.container_port.to_be_bytes(),
                    protocol,
                },
            };
            frontends.extend(scopes.iter().map(|scope| Frontend {
                key: ServiceKey {
                    address: address.into(),
                    port: port.port.to_be_bytes(),
                    protocol,
                    scope: *scope,
                },
                kind: AddressKind::HostPort,
                port_name: port.name.clone(),
                created: pod.created,
                preference: Preference::LocalOnly,
                affinity_timeout_s: 0,
                node_share: SHARE_ONE,
                source_ranges: None,
                direct_return: false,
                backends: vec![backend],
            }));
        }
    }
    (frontends, leftovers.into_vec())
}

/// Under which addresses a port stands, and who dials it there. The unspecified one is every address of the node, as for
/// node ports; nobody outside dials the node's loopback.
fn addresses(
    port: &HostPort,
    own: Option<&BTreeSet<IpAddr>>,
    leftovers: &mut Leftovers,
) -> Vec<(IpAddr, &'static [Scope])> {
    let everywhere = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    match port.address {
        None => everywhere.map(|ip| (ip, BOTH)).into(),
        Some(ip) if ip.is_unspecified() => vec![(ip, BOTH)],
        Some(ip) if ip.is_loopback() => vec![(ip, INSIDE)],
        Some(ip) => match own {
            Some(own) if own.contains(&ip) => vec![(ip, BOTH)],
            Some(_) => {
                leftovers.add(Why::HostAddress, ip);
                Vec::new()
            }
            // Which are the node's is not known yet.
            None => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cluster::{HostPorts, Locality, Protocol};

    const NODE: &str = "192.0.2.7";

    fn port(protocol: Protocol, address: Option<&str>, port: u16) -> HostPort {
        HostPort {
            name: "web".into(),
            protocol,
            address: address.map(|ip| ip.parse().unwrap()),
            port,
            container_port: 80,
        }
    }

    fn key() -> ObjectKey {
        ObjectKey::of_pod("shop", "web-1")
    }

    /// What a pod with these addresses gets: where, for whom, and who answers.
    fn asked(addresses: &[&str], ports: Vec<HostPort>) -> (Vec<String>, Vec<Ignored>) {
        let mut view = View::default();
        view.set_own_addresses(BTreeSet::from([NODE.parse().unwrap()]));
        let pod = HostPorts {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports,
            ..HostPorts::default()
        };
        view.host_ports.insert(key(), Arc::new(pod));
        let (frontends, ignored) = super::super::desired(&view, "here", Locality::Node, &key());
        let shown = frontends.iter().map(|it| {
            assert_eq!(it.kind, AddressKind::HostPort);
            let [backend] = it.backends[..] else {
                panic!("one backend")
            };
            let ServiceKey {
                address,
                port,
                protocol,
                scope,
            } = it.key;
            let port = u16::from_be_bytes(port);
            let whence = if scope == Scope::EXTERNAL {
                "out"
            } else {
                "in"
            };
            let target = backend.target;
            assert_eq!((target.port, target.protocol), ([0, 80], protocol));
            format!("{whence} {protocol} {address} {port} {}", target.address)
        });
        (shown.collect(), ignored)
    }

    #[test]
    fn a_host_port_is_at_every_address_of_the_pods_families() {
        let (shown, ignored) = asked(
            &["10.244.1.7", "fd00:244:1::7"],
            vec![port(Protocol::Tcp, None, 8081)],
        );
        assert_eq!(
            shown,
            [
                "in 6 0.0.0.0 8081 10.244.1.7",
                "out 6 0.0.0.0 8081 10.244.1.7",
                "in 6 :: 8081 fd00:244:1::7",
                "out 6 :: 8081 fd00:244:1::7",
            ]
        );
        assert_eq!(ignored, []);
        let (shown, ignored) = asked(&["10.244.1.7"], vec![port(Protocol::Udp, None, 53)]);
        assert_eq!(shown.len(), 2, "of the other family there is no pod");
        assert_eq!(ignored, []);
    }

    #[test]
    fn a_host_ip_narrows_it() {
        let of = |ip| asked(&["10.244.1.7"], vec![port(Protocol::Tcp, Some(ip), 8081)]);
        assert_eq!(of("0.0.0.0").0.len(), 2);
        assert_eq!(
            of(NODE).0,
            [
                "in 6 192.0.2.7 8081 10.244.1.7",
                "out 6 192.0.2.7 8081 10.244.1.7"
            ]
        );
        assert_eq!(of("127.0.0.1").0, ["in 6 127.0.0.1 8081 10.244.1.7"]);
    }

    #[test]
    fn nobody_takes_what_is_meant_for_another() {
        for (ip, why) in [
            ("10.96.0.1", Why::HostAddress),
            ("8.8.8.8", Why::HostAddress),
            ("::", Why::HostAddressFamily),
        ] {
            let (shown, ignored) = asked(&["10.244.1.7"], vec![port(Protocol::Tcp, Some(ip), 443)]);
            assert_eq!((shown.len(), ignored[0].why), (0, why), "{ip}");
        }
        let (shown, ignored) = asked(&["10.244.1.7"], vec![port(Protocol::Sctp, None, 443)]);
        assert_eq!((shown.len(), ignored[0].why), (0, Why::Protocol));
    }

    #[test]
    fn before_the_nodes_addresses_are_known_none_is_refused() {
        let mut view = View::default();
        let ports = vec![port(Protocol::Tcp, Some(NODE), 8081)];
        let pod = HostPorts {
            addresses: vec!["10.244.1.7".parse().unwrap()],
            ports,
            ..HostPorts::default()
        };
        view.set_host_ports(key(), Some(pod));
        assert_eq!(desired(&view, &key()), (vec![], vec![]));
        let changes = view.set_own_addresses(BTreeSet::from([NODE.parse().unwrap()]));
        assert_eq!(changes, [crate::cluster::Change::Service(key())]);
        assert_eq!(desired(&view, &key()).0.len(), 2);
    }
}
