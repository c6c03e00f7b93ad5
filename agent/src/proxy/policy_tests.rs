use super::super::testing::*;
use super::*;
use crate::cluster::{Node, Service, SlicePort};
use agent_ebpf::abi::Scope;

fn web(view: &View) -> (Vec<Frontend>, Vec<Ignored>) {
    desired(view, NODE, Locality::Node, &ObjectKey::new("ns", "web"))
}

fn one(view: &View) -> Frontend {
    let (mut frontends, ignored) = web(view);
    assert!(ignored.is_empty());
    assert_eq!(frontends.len(), 1);
    frontends.remove(0)
}

/// Last byte of each backend's address, with its class.
fn order(frontend: &Frontend) -> Vec<(u8, Class)> {
    frontend
        .backends
        .iter()
        .map(|backend| (backend.target.address.octets()[15], backend.class))
        .collect()
}

fn everywhere() -> Vec<Endpoint> {
    vec![
        endpoint(1, "c", "z2"),
        endpoint(2, "b", "z1"),
        endpoint(3, "a", "z1"),
        terminating(endpoint(4, "a", "z1")),
    ]
}

#[test]
fn near_before_far_before_leaving() {
    let frontend = one(&view(vec![("web", service("10.96.0.1"), everywhere())]));
    assert_eq!(
        frontend.key,
        ServiceKey {
            address: abi::Address::v4([10, 96, 0, 1]),
            port: [0, 80],
            protocol: abi::TCP,
            scope: Scope::CLUSTER
        }
    );
    assert_eq!(
        order(&frontend),
        [
            (3, Class::Local),
            (2, Class::Zone),
            (1, Class::Rest),
            (4, Class::Terminating)
        ]
    );
    assert_eq!(frontend.backends[0].target.port, 8080u16.to_be_bytes());
}

#[test]
fn local_only_offers_no_other() {
    let service = Service {
        internal_local: true,
        ..service("10.96.0.1")
    };
    let frontend = one(&view(vec![("web", service, everywhere())]));
    assert_eq!(
        order(&frontend),
        [
            (3, Class::Local),
            (4, Class::Terminating),
            (1, Class::Draining),
            (2, Class::Draining)
        ]
    );
    assert_eq!(frontend.preference, Preference::LocalOnly);
}

#[test]
fn kubernetes_own_fields_win_over_the_annotation() {
    let mut service = service("10.96.0.1");
    let view = view(vec![]);
    let preferred = |service: &Service, default| {
        Nearness::new(Here::new(&view, NODE), service, default, &[]).preference
    };
    for (default, wanted) in [
        (Locality::Node, Preference::Node),
        (Locality::Zone, Preference::SameZone),
        (Locality::Cluster, Preference::Even),
    ] {
        assert_eq!(preferred(&service, default), wanted);
    }
    service.locality = Some(Locality::Cluster);
    assert_eq!(preferred(&service, Locality::Zone), Preference::Even);
    service.locality = Some(Locality::Zone);
    assert_eq!(preferred(&service, Locality::Node), Preference::SameZone);
    service.traffic_distribution = Some("PreferSameNode".into());
    assert_eq!(preferred(&service, Locality::Node), Preference::SameNode);
    for same_zone in ["PreferClose", "PreferSameZone"] {
        service.traffic_distribution = Some(same_zone.into());
        assert_eq!(preferred(&service, Locality::Node), Preference::SameZone);
        let nowhere = Here::new(&view, "a node without a zone");
        assert_eq!(
            Nearness::new(nowhere, &service, Locality::Node, &[]).preference,
            Preference::Even
        );
    }
    service.internal_local = true;
    assert_eq!(preferred(&service, Locality::Node), Preference::LocalOnly);
}

#[test]
fn shares_follow_the_preference() {
    let share = |preference: Preference| preference.local_share(1, 1, 4);
    assert_eq!(share(Preference::Node), COMFORTABLE_SHARE);
    assert_eq!(share(Preference::SameNode), SHARE_ONE);
    assert_eq!(share(Preference::SameZone), SHARE_ONE / 2);
    assert_eq!(share(Preference::Even), SHARE_ONE / 4);
    assert_eq!(Preference::Node.local_share(0, 1, 4), 0);
    assert_eq!(
        Preference::Node.local_share(2, 0, 2),
        SHARE_ONE,
        "there is nobody else"
    );
}

#[test]
fn even_spread_knows_no_zone() {
    let service = Service {
        locality: Some(Locality::Cluster),
        ..service("10.96.0.1")
    };
    let frontend = one(&view(vec![("web", service, everywhere())]));
    assert_eq!(
        order(&frontend),
        [
            (3, Class::Local),
            (1, Class::Rest),
            (2, Class::Rest),
            (4, Class::Terminating)
        ]
    );
}

#[test]
fn a_target_in_two_slices_counts_once_in_its_best_state() {
    let mut view = view(vec![(
        "web",
        service("10.96.0.1"),
        vec![terminating(endpoint(1, "a", "z1")), endpoint(2, "b", "z2")],
    )]);
    let copy = slice("web", vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z2")]);
    view.set_slice(ObjectKey::new("ns", "web-by-hand"), Some(copy));
    assert_eq!(order(&one(&view)), [(1, Class::Local), (2, Class::Rest)]);
}

#[test]
fn what_is_not_ready_gets_nothing_unless_the_service_says_so() {
    let not_ready = not_ready(endpoint(1, "a", "z1"));
    let quiet = view(vec![("web", service("10.96.0.1"), vec![not_ready.clone()])]);
    assert_eq!(order(&one(&quiet)), [(1, Class::Draining)]);
    let service = Service {
        publish_not_ready: true,
        ..service("10.96.0.1")
    };
    let published = view(vec![("web", service, vec![not_ready])]);
    assert_eq!(order(&one(&published)), [(1, Class::Local)]);
}

#[test]
fn ports_meet_by_name() {
    let mut service = service("10.96.0.1");
    let port = |name: &str, protocol, port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: None,
    };
    service.ports = vec![
        port("web", Protocol::Tcp, 80),
        port("dns", Protocol::Udp, 53),
        port("absent", Protocol::Tcp, 81),
    ];
    let mut view = view(vec![("web", service, vec![])]);
    let mut slice = slice("web", vec![endpoint(1, "a", "z1")]);
    let port = |name: &str, protocol, port| SlicePort {
        name: name.into(),
        protocol,
        port,
    };
    slice.ports = vec![
        port("dns", Protocol::Udp, 5353),
        port("web", Protocol::Tcp, 8080),
    ];
    view.set_slice(ObjectKey::new("ns", "web-1"), Some(slice));
    let (frontends, _) = web(&view);
    let ports: Vec<_> = frontends
        .iter()
        .map(|f| {
            (
                &*f.port_name,
                f.key.protocol,
                f.backends
                    .first()
                    .map(|b| u16::from_be_bytes(b.target.port)),
            )
        })
        .collect();
    assert_eq!(
        ports,
        [
            ("web", abi::TCP, Some(8080)),
            ("dns", abi::UDP, Some(5353)),
            ("absent", abi::TCP, None)
        ]
    );
}

#[test]
fn headless_and_foreign_services_are_not_ours() {
    let headless = Service {
        headless: true,
        cluster_ips: vec![],
        ..service("10.96.0.1")
    };
    let foreign = Service {
        proxy_name: Some("other".into()),
        ..service("10.96.0.2")
    };
    let labelled = Service {
        not_for_proxies: true,
        ..service("10.96.0.3")
    };
    let view = view(vec![
        ("headless", headless, everywhere()),
        ("foreign", foreign, everywhere()),
        ("labelled", labelled, everywhere()),
    ]);
    for name in ["headless", "foreign", "labelled", "absent"] {
        let key = ObjectKey::new("ns", name);
        let (frontends, ignored) = desired(&view, NODE, Locality::Node, &key);
        assert!(frontends.is_empty() && ignored.is_empty(), "{name}");
    }
}

#[test]
fn slices_that_are_not_for_proxies_are_left_alone() {
    let mut view = view(vec![(
        "web",
        service("10.96.0.1"),
        vec![endpoint(1, "a", "z1")],
    )]);
    let theirs = Slice {
        not_for_proxies: true,
        ..slice("web", vec![endpoint(2, "a", "z1")])
    };
    view.set_slice(ObjectKey::new("ns", "web-theirs"), Some(theirs));
    assert_eq!(order(&one(&view)), [(1, Class::Local)]);
}

#[test]
fn each_family_has_backends_of_its_own() {
    let mut service = service("10.96.0.1");
    service.cluster_ips.push("fd00::1".parse().unwrap());
    let six = Endpoint {
        addresses: vec!["fd00:244::9".parse().unwrap()],
        ..endpoint(9, "b", "z1")
    };
    let mut view = view(vec![("web", service, vec![endpoint(1, "a", "z1")])]);
    view.set_slice(ObjectKey::new("ns", "web-6"), Some(slice("web", vec![six])));
    let (frontends, ignored) = web(&view);
    assert!(ignored.is_empty());
    let shown: Vec<(String, Vec<String>)> = frontends
        .iter()
        .map(|frontend| {
            let targets = frontend.backends.iter().map(|it| it.target.address);
            (
                frontend.key.address.to_string(),
                targets.map(|address| address.to_string()).collect(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("10.96.0.1".to_owned(), vec!["10.244.0.1".to_owned()]),
            ("fd00::1".to_owned(), vec!["fd00:244::9".to_owned()]),
        ]
    );
}

#[test]
fn a_local_service_falls_back_to_who_leaves_this_node_and_to_nobody_else() {
    let service = Service {
        internal_local: true,
        ..service("10.96.0.1")
    };
    let leaving = vec![
        endpoint(1, "b", "z1"),
        terminating(endpoint(2, "a", "z1")),
        terminating(endpoint(3, "b", "z1")),
    ];
    let frontend = one(&view(vec![("web", service, leaving)]));
    let offered: Vec<Class> = frontend.offered().map(|backend| backend.class).collect();
    assert_eq!(offered, [Class::Terminating]);
    assert_eq!(frontend.backends[0].target.address.octets()[15], 2);
}

#[test]
fn without_a_zone_of_its_own_a_node_spreads_what_prefers_the_zone() {
    let service = Service {
        traffic_distribution: Some("PreferSameZone".into()),
        ..service("10.96.0.1")
    };
    let mut view = view(vec![("web", service, everywhere())]);
    view.set_node(NODE.into(), Some(Node::default()));
    let frontend = one(&view);
    assert_eq!(frontend.preference, Preference::Even);
    assert_eq!(
        order(&frontend),
        [
            (3, Class::Local),
            (1, Class::Rest),
            (2, Class::Rest),
            (4, Class::Terminating)
        ]
    );
}

mod hints {
    use super::*;
    use crate::cluster::Hints;

    fn hinted(endpoint: Endpoint, nodes: &[&str], zones: &[&str]) -> Endpoint {
        let names = |all: &[&str]| all.iter().map(|name| (*name).into()).collect();
        let hints = Hints {
            nodes: names(nodes),
            zones: names(zones),
        };
        Endpoint {
            hints: Some(Box::new(hints)),
            ..endpoint
        }
    }

    fn of(endpoints: Vec<Endpoint>) -> (Preference, Vec<(u8, Class)>) {
        let frontend = one(&view(vec![("web", service("10.96.0.1"), endpoints)]));
        (frontend.preference, order(&frontend))
    }

    #[test]
    fn zones_that_are_hinted_replace_those_that_are() {
        let endpoints = vec![
            hinted(endpoint(1, "b", "z2"), &[], &["z1"]),
            hinted(endpoint(2, "a", "z1"), &[], &["z2"]),
            hinted(endpoint(3, "a", "z1"), &[], &["z1", "z2"]),
        ];
        let (preference, order) = of(endpoints);
        assert_eq!(preference, Preference::SameZone);
        assert_eq!(
            order,
            [(3, Class::Local), (1, Class::Zone), (2, Class::Rest)]
        );
        assert_eq!(preference.local_share(1, 1, 3), SHARE_ONE / 2);
    }

    #[test]
    fn nodes_that_are_hinted_come_before_zones() {
        let near = hinted(endpoint(1, "a", "z1"), &["a"], &["z1"]);
        let far = hinted(endpoint(2, "b", "z1"), &["b"], &["z1"]);
        let (preference, order) = of(vec![near.clone(), far.clone()]);
        assert_eq!(preference, Preference::SameNode);
        assert_eq!(order, [(1, Class::Local), (2, Class::Rest)]);
        // Nobody for this node: its zone.
        let (preference, order) = of(vec![far]);
        assert_eq!(
            (preference, order),
            (Preference::SameZone, vec![(2, Class::Zone)])
        );
    }

    #[test]
    fn hints_count_only_if_all_have_some_and_one_is_for_here() {
        let unhinted = of(vec![endpoint(1, "b", "z1"), endpoint(2, "a", "z1")]);
        for endpoints in [
            vec![
                hinted(endpoint(1, "b", "z1"), &[], &["z1"]),
                endpoint(2, "a", "z1"),
            ],
            vec![
                hinted(endpoint(1, "b", "z1"), &["c"], &["z9"]),
                hinted(endpoint(2, "a", "z1"), &["c"], &["z9"]),
            ],
        ] {
            assert_eq!(of(endpoints), unhinted);
        }
        let (preference, _) = of(vec![
            hinted(endpoint(1, "b", "z1"), &[], &["z1"]),
            not_ready(endpoint(2, "a", "z1")),
        ]);
        assert_eq!(
            preference,
            Preference::SameZone,
            "who is not ready has no say"
        );
    }

    #[test]
    fn a_local_service_knows_no_hints() {
        let service = Service {
            internal_local: true,
            ..service("10.96.0.1")
        };
        let endpoints = vec![
            hinted(endpoint(1, "b", "z1"), &["a"], &[]),
            hinted(endpoint(2, "a", "z1"), &["b"], &[]),
        ];
        let frontend = one(&view(vec![("web", service, endpoints)]));
        assert_eq!(order(&frontend), [(2, Class::Local), (1, Class::Draining)]);
    }
}

mod bad_input {
    use super::*;

    fn refused(service: Service) -> (Vec<Frontend>, Vec<String>) {
        let mut view = view(vec![("web", service, everywhere())]);
        let far = Node {
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            internal_ips: vec!["10.96.0.1".parse().unwrap()],
            ..Node::default()
        };
        let own = Node {
            internal_ips: vec!["192.0.2.7".parse().unwrap()],
            ..Node::default()
        };
        view.set_node("far".into(), Some(far));
        view.set_node(NODE.into(), Some(own));
        let (frontends, ignored) = web(&view);
        (frontends, ignored.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_a_nodes_or_a_pods_is_no_services() {
        let mut greedy = service("192.0.2.7");
        greedy.cluster_ips.push("10.244.1.9".parse().unwrap());
        greedy.cluster_ips.push("10.96.0.1".parse().unwrap());
        let (frontends, reasons) = refused(greedy);
        assert_eq!(frontends.len(), 1, "another node has no say");
        assert_eq!(
            reasons,
            [
                "a service cannot have a node's address: 192.0.2.7",
                "a service cannot have a pod's address: 10.244.1.9",
            ]
        );
    }

    #[test]
    fn sctp_is_left_out_with_a_reason() {
        let mut service = service("10.96.0.1");
        service.ports.push(ServicePort {
            name: "sig".into(),
            protocol: Protocol::Sctp,
            port: 9,
            node_port: None,
        });
        let (frontends, reasons) = refused(service);
        assert_eq!(frontends.len(), 1);
        assert_eq!(reasons, ["only TCP and UDP are translated: 9/SCTP"]);
    }
}
