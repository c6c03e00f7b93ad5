//! Services for clients outside, as the Service documentation of Kubernetes has them.

use super::super::testing::*;
use super::*;
use crate::cluster::{Exposed, Hints, Node, Service};

fn exposed() -> Service {
    exposed_service("10.96.0.1")
}

fn with(change: impl FnOnce(&mut Exposed)) -> Service {
    let mut service = exposed();
    change(service.exposed.as_mut().unwrap());
    service
}

fn everywhere() -> Vec<Endpoint> {
    vec![
        endpoint(1, "c", "z2"),
        endpoint(2, "b", "z1"),
        endpoint(3, "a", "z1"),
        terminating(endpoint(4, "a", "z1")),
        terminating(endpoint(5, "b", "z1")),
    ]
}

fn web(view: &View) -> (Vec<Frontend>, Vec<String>) {
    let (frontends, ignored) = desired(view, NODE, Locality::Node, &ObjectKey::new("ns", "web"));
    (frontends, ignored.iter().map(ToString::to_string).collect())
}

fn of(service: Service, endpoints: Vec<Endpoint>) -> Vec<Frontend> {
    let (frontends, ignored) = web(&view(vec![("web", service, endpoints)]));
    assert_eq!(ignored, Vec::<String>::new());
    frontends
}

fn find(frontends: &[Frontend], kind: AddressKind, scope: Scope) -> &Frontend {
    let mut found = frontends
        .iter()
        .filter(|it| it.kind == kind && it.key.scope == scope);
    let frontend = found.next().unwrap();
    assert!(found.next().is_none());
    frontend
}

/// Last byte of each offered backend's address.
fn offered(frontend: &Frontend) -> Vec<u8> {
    let backends = frontend.offered();
    backends.map(|it| it.target.address.octets()[15]).collect()
}

fn shown(frontends: &[Frontend]) -> Vec<String> {
    let show = |it: &Frontend| {
        let scope = match it.key.scope {
            Scope::EXTERNAL => " outside",
            _ => "",
        };
        let port = u16::from_be_bytes(it.key.port);
        format!("{} {}:{port}{scope}", it.kind.name(), it.key.address)
    };
    frontends.iter().map(show).collect()
}

const FROM_OUTSIDE: [AddressKind; 3] = [
    AddressKind::NodePort,
    AddressKind::LoadBalancer,
    AddressKind::ExternalIp,
];

#[test]
fn each_address_has_a_frontend_for_each_scope() {
    assert_eq!(
        shown(&of(exposed(), everywhere())),
        [
            "ClusterIP 10.96.0.1:80",
            "NodePort 0.0.0.0:30080",
            "NodePort 0.0.0.0:30080 outside",
            "LoadBalancer 203.0.113.1:80",
            "LoadBalancer 203.0.113.1:80 outside",
            "ExternalIP 198.51.100.1:80",
            "ExternalIP 198.51.100.1:80 outside",
        ]
    );
}

#[test]
fn a_load_balancer_without_node_ports_has_none() {
    let mut service = exposed();
    service.ports[0].node_port = None;
    let frontends = of(service, everywhere());
    assert!(frontends.iter().all(|it| it.kind != AddressKind::NodePort));
    assert_eq!(frontends.len(), 5);
}

#[test]
fn a_node_port_of_both_families_stands_under_both_unspecified_addresses() {
    let mut service = with(|it| {
        it.load_balancer_ips.clear();
        it.external_ips.clear();
    });
    service.cluster_ips.push("fd00::1".parse().unwrap());
    let frontends = of(service, everywhere());
    let six = frontends
        .iter()
        .filter(|it| it.key.address == abi::Address::from([0; 16]));
    assert_eq!(six.count(), 2);
    assert!(shown(&frontends).contains(&"NodePort :::30080 outside".to_owned()));
}

#[test]
fn from_outside_all_ready_backends_are_offered_evenly() {
    let frontends = of(exposed(), everywhere());
    for kind in FROM_OUTSIDE {
        let frontend = find(&frontends, kind, Scope::EXTERNAL);
        assert_eq!(frontend.preference, Preference::Even, "{kind:?}");
        assert_eq!(offered(frontend), [3, 1, 2, 4, 5], "those that leave last");
    }
}

#[test]
fn a_local_policy_is_for_the_outside_only() {
    let frontends = of(with(|it| it.local = true), everywhere());
    for kind in FROM_OUTSIDE {
        let outside = find(&frontends, kind, Scope::EXTERNAL);
        assert_eq!(outside.preference, Preference::LocalOnly);
        assert_eq!(offered(outside), [3, 4], "{kind:?}");
        let inside = find(&frontends, kind, Scope::CLUSTER);
        assert_eq!(inside.preference, Preference::Node);
        assert_eq!(offered(inside), [3, 2, 1, 4, 5], "{kind:?}");
    }
}

#[test]
fn without_a_ready_local_backend_one_that_leaves_serves_and_then_nobody() {
    let leaving = vec![
        endpoint(1, "b", "z1"),
        terminating(endpoint(2, "a", "z1")),
        terminating(endpoint(3, "b", "z1")),
    ];
    let frontends = of(with(|it| it.local = true), leaving);
    let outside = find(&frontends, AddressKind::NodePort, Scope::EXTERNAL);
    assert_eq!(offered(outside), [2]);
    assert_eq!(outside.backends[0].class, Class::Terminating);

    let elsewhere = vec![endpoint(1, "b", "z1")];
    let frontends = of(with(|it| it.local = true), elsewhere);
    let outside = find(&frontends, AddressKind::NodePort, Scope::EXTERNAL);
    assert_eq!(outside.offered().count(), 0);
}

#[test]
fn a_local_internal_policy_is_for_the_cluster_ip_only() {
    let service = Service {
        internal_local: true,
        ..exposed()
    };
    let frontends = of(service, everywhere());
    let preference = |kind, scope| find(&frontends, kind, scope).preference;
    let local = preference(AddressKind::ClusterIp, Scope::CLUSTER);
    assert_eq!(local, Preference::LocalOnly);
    for kind in FROM_OUTSIDE {
        assert_eq!(preference(kind, Scope::CLUSTER), Preference::Node);
        assert_eq!(preference(kind, Scope::EXTERNAL), Preference::Even);
    }
}

#[test]
fn hints_do_not_make_nodes_differ_for_who_comes_from_outside() {
    let hinted = |last, node: &str, zone: &str| Endpoint {
        hints: Some(Box::new(Hints {
            zones: vec![zone.into()],
            ..Hints::default()
        })),
        ..endpoint(last, node, zone)
    };
    let endpoints = vec![hinted(1, "b", "z1"), hinted(2, "c", "z2")];
    let frontends = of(exposed(), endpoints);
    let inside = find(&frontends, AddressKind::NodePort, Scope::CLUSTER);
    assert_eq!(inside.preference, Preference::SameZone);
    let outside = find(&frontends, AddressKind::NodePort, Scope::EXTERNAL);
    assert_eq!(outside.preference, Preference::Even);
}

#[test]
fn source_ranges_are_for_load_balancers_addresses_whoever_dials() {
    let frontends = of(
        with(|it| it.source_ranges = Some(["10.0.0.0/8".parse().unwrap()].into())),
        everywhere(),
    );
    for frontend in &frontends {
        let wanted = frontend.kind == AddressKind::LoadBalancer;
        assert_eq!(frontend.source_ranges.is_some(), wanted, "{frontend:?}");
        let flag = frontend.flags() & FLAG_SOURCE_RANGES != 0;
        assert_eq!(flag, wanted);
    }
}

#[test]
fn direct_return_is_for_the_outside() {
    for frontend in of(with(|it| it.direct_return = true), everywhere()) {
        let outside = frontend.key.scope == Scope::EXTERNAL;
        assert_eq!(frontend.flags() & FLAG_DIRECT_RETURN != 0, outside);
    }
}

#[test]
fn what_is_anothers_is_not_captured() {
    let service = with(|it| {
        let ips = [
            "192.0.2.7",
            "192.0.2.8",
            "10.244.1.9",
            "10.96.0.2",
            "10.96.0.1",
        ];
        it.external_ips = ips.map(|ip| ip.parse().unwrap()).to_vec();
        it.external_ips.push("2001:db8::1".parse().unwrap());
        it.load_balancer_ips = vec!["192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap()];
    });
    let mut view = view(vec![
        ("web", service, everywhere()),
        ("other", super::super::testing::service("10.96.0.2"), vec![]),
    ]);
    let node = |ip: &str, pods: &[&str]| Node {
        internal_ips: vec![ip.parse().unwrap()],
        pod_cidrs: pods.iter().map(|range| range.parse().unwrap()).collect(),
        ..Node::default()
    };
    view.set_node(NODE.into(), Some(node("192.0.2.7", &[])));
    view.set_node("far".into(), Some(node("192.0.2.8", &["10.244.1.0/24"])));
    let (frontends, reasons) = web(&view);
    assert_eq!(
        shown(&frontends),
        [
            "ClusterIP 10.96.0.1:80",
            "NodePort 0.0.0.0:30080",
            "NodePort 0.0.0.0:30080 outside",
            // Whoever sets the status is trusted with what is not this node's.
            "LoadBalancer 192.0.2.8:80",
            "LoadBalancer 192.0.2.8:80 outside",
        ]
    );
    assert_eq!(
        reasons,
        [
            "a service cannot have a node's address: 192.0.2.7 and 1 more",
            "a service cannot have a pod's address: 10.244.1.9",
            "an external IP cannot be a service's cluster IP: 10.96.0.2",
            "the service has no cluster IP of this address's family: 2001:db8::1",
        ]
    );
}
