use super::super::testing::*;
use super::*;
use crate::cluster::SlicePort;

fn one(view: &View) -> Frontend {
    let (mut frontends, ignored) = desired(view, NODE, &ObjectKey::new("ns", "web"));
    assert!(ignored.is_empty());
    assert_eq!(frontends.len(), 1);
    frontends.remove(0)
}

/// Last byte of each backend's address, with its class.
fn order(frontend: &Frontend) -> Vec<(u8, Class)> {
    frontend
        .backends
        .iter()
        .map(|backend| (backend.target.address.0[15], backend.class))
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
            pad: 0
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
    assert_eq!(preference(&service), Preference::Node);
    service.locality = Some("cluster".into());
    assert_eq!(preference(&service), Preference::Even);
    service.traffic_distribution = Some("PreferSameNode".into());
    assert_eq!(preference(&service), Preference::SameNode);
    service.traffic_distribution = Some("PreferClose".into());
    assert_eq!(preference(&service), Preference::SameZone);
    service.internal_local = true;
    assert_eq!(preference(&service), Preference::LocalOnly);
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
        locality: Some("cluster".into()),
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
    let (frontends, _) = desired(&view, NODE, &ObjectKey::new("ns", "web"));
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
fn what_cannot_be_translated_is_left_out_with_a_reason() {
    let mut service = service("10.96.0.1");
    service.cluster_ips.push("fd00::1".parse().unwrap());
    service.ports.push(ServicePort {
        name: "sig".into(),
        protocol: Protocol::Sctp,
        port: 9,
        node_port: None,
    });
    let view = view(vec![("web", service, everywhere())]);
    let (frontends, ignored) = desired(&view, NODE, &ObjectKey::new("ns", "web"));
    assert_eq!(frontends.len(), 1);
    assert_eq!(ignored, [Ignored::Ipv6, Ignored::Sctp]);
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
    let view = view(vec![
        ("headless", headless, everywhere()),
        ("foreign", foreign, everywhere()),
    ]);
    for name in ["headless", "foreign", "absent"] {
        assert!(
            desired(&view, NODE, &ObjectKey::new("ns", name))
                .0
                .is_empty()
        );
    }
}
