//! Which way is chosen for each pair, and that the steps lead there.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn view(nodes: &[(&str, &[&str], &[&str])]) -> View {
    let mut view = View {
        synced: true,
        ..View::default()
    };
    for (name, ranges, addresses) in nodes {
        let node = Node {
            pod_cidrs: ranges.iter().map(|range| net(range)).collect(),
            internal_ips: addresses.iter().map(|address| ip(address)).collect(),
            zone: None,
        };
        view.nodes.insert((*name).into(), Arc::new(node));
    }
    view
}

fn uplink(address: &str, network: &str, mtu: u32) -> Uplink {
    Uplink {
        address: ip(address),
        networks: vec![net(network)],
        mtu,
    }
}

fn underlay(uplinks: &[Uplink]) -> Underlay {
    Underlay {
        uplinks: uplinks.to_vec(),
        gateways: vec![ip("10.244.0.1"), ip("fd00:0:0:0::1")],
        vni: 7,
    }
}

fn v4() -> Uplink {
    uplink("192.0.2.1", "192.0.2.0/24", 1500)
}

fn v6() -> Uplink {
    uplink("2001:db8::1", "2001:db8::/64", 1500)
}

fn tunnel(remote: &str, source: &str, mtu: u32) -> Hop {
    Hop::Tunnel(Tunnel {
        remote: ip(remote),
        vni: 7,
        source: Some(ip(source)),
        mtu,
    })
}

fn direct(next_hop: &str) -> Hop {
    Hop::Direct(ip(next_hop))
}

const OWN: (&str, &[&str], &[&str]) = (
    "own",
    &["10.244.0.0/24", "fd00:0:0:0::/64"],
    &["192.0.2.1", "2001:db8::1"],
);

/// The hops to the ranges of a peer with these addresses, the IPv4 range's first.
fn hops(uplinks: &[Uplink], addresses: &[&str]) -> [Result<Hop, Refusal>; 2] {
    let ranges: &[&str] = &["10.244.1.0/24", "fd00:0:0:1::/64"];
    let peers = wanted(
        &view(&[OWN, ("peer", ranges, addresses)]),
        "own",
        &underlay(uplinks),
    );
    let of_peer = &peers["peer"];
    assert_eq!(peers.len(), 1);
    [ranges[0], ranges[1]].map(|range| of_peer[&net(range)].clone())
}

#[test]
fn each_pair_goes_directly_where_it_can_and_by_the_tunnel_where_not() {
    let tunnel_v4 = |source| tunnel("198.51.100.2", source, 1450);
    let (gateway_v4, gateway_v6) = ("10.244.0.1", "fd00::1");
    for (uplinks, addresses, expected) in [
        // On the link, by the family of the pods.
        (
            vec![v4(), v6()],
            vec!["192.0.2.2", "2001:db8::2"],
            [direct("192.0.2.2"), direct("2001:db8::2")],
        ),
        (
            vec![v4(), v6()],
            vec!["198.51.100.2", "192.0.2.2", "2001:db8::2"],
            [direct("192.0.2.2"), direct("2001:db8::2")],
        ),
        // Pods of IPv4 on nodes of IPv6.
        (
            vec![v6()],
            vec!["2001:db8::2"],
            [direct("2001:db8::2"), direct("2001:db8::2")],
        ),
        // Pods of IPv6 on nodes of IPv4: there is no such next hop.
        (
            vec![v4()],
            vec!["192.0.2.2"],
            [direct("192.0.2.2"), tunnel("192.0.2.2", gateway_v6, 1450)],
        ),
        // One family on the link, the other not.
        (
            vec![v4(), v6()],
            vec!["198.51.100.2", "2001:db8::2"],
            [direct("2001:db8::2"), direct("2001:db8::2")],
        ),
        // Beyond a router: both through one tunnel, of the primary family that the two have.
        (
            vec![v4()],
            vec!["198.51.100.2"],
            [tunnel_v4(gateway_v4), tunnel_v4(gateway_v6)],
        ),
        (
            vec![v4(), v6()],
            vec!["2001:db8:9::2", "198.51.100.2"],
            [tunnel_v4(gateway_v4), tunnel_v4(gateway_v6)],
        ),
        (
            vec![v6(), v4()],
            vec!["198.51.100.2", "2001:db8:9::2"],
            [
                tunnel("2001:db8:9::2", gateway_v4, 1430),
                tunnel("2001:db8:9::2", gateway_v6, 1430),
            ],
        ),
    ] {
        assert_eq!(
            hops(&uplinks, &addresses),
            expected.map(Ok),
            "{addresses:?}"
        );
    }
}

#[test]
fn what_leads_nowhere_has_a_reason() {
    let both = |why: Refusal| [Err(why.clone()), Err(why)];
    assert_eq!(hops(&[v4()], &[]), both(Refusal::NoAddress));
    assert_eq!(
        hops(&[v4()], &["2001:db8::2"]),
        both(Refusal::NoCommonFamily)
    );
    assert_eq!(hops(&[], &["192.0.2.2"]), both(Refusal::NoCommonFamily));
    // IPv4 fits through what is too narrow for IPv6.
    let narrow = uplink("192.0.2.1", "192.0.2.0/24", 1329);
    assert_eq!(
        hops(&[narrow], &["198.51.100.2"]),
        [
            Ok(tunnel("198.51.100.2", "10.244.0.1", 1279)),
            Err(Refusal::Narrow(1279))
        ]
    );
}

#[test]
fn no_range_takes_traffic_away_from_others() {
    let view = view(&[
        OWN,
        ("a", &["10.244.1.0/24"], &["192.0.2.2"]),
        ("double", &["10.244.0.0/25"], &["192.0.2.5"]),
        ("greedy", &["::/0"], &["192.0.2.6"]),
        ("link", &["192.0.2.128/25"], &["192.0.2.7"]),
        ("second", &["10.244.1.0/24"], &["192.0.2.8"]),
        ("third", &["10.244.3.0/24", "10.244.4.0/24"], &["192.0.2.9"]),
    ]);
    let peers = wanted(&view, "own", &underlay(&[v4()]));
    let refusals: BTreeMap<&str, String> = peers
        .iter()
        .flat_map(|(name, ranges)| ranges.values().map(move |hop| (&**name, hop)))
        .filter_map(|(name, hop)| Some((name, hop.as_ref().err()?.to_string())))
        .collect();
    let starts = [
        (
            "double",
            "its pod range 10.244.0.0/25 overlaps 10.244.0.0/24, which is this node's own",
        ),
        ("greedy", "its pod range ::/0 overlaps fd00::/64,"),
        (
            "link",
            "its pod range 192.0.2.128/25 overlaps 192.0.2.0/24,",
        ),
        (
            "second",
            "its pod range 10.244.1.0/24 is also that of node a;",
        ),
    ];
    assert_eq!(refusals.len(), starts.len(), "{refusals:?}");
    for (name, start) in starts {
        assert!(refusals[name].starts_with(start), "{}", refusals[name]);
    }
    let expected = [
        (net("10.244.1.0/24"), direct("192.0.2.2")),
        (net("10.244.3.0/24"), direct("192.0.2.9")),
    ];
    assert_eq!(routes(&peers), Routes::from(expected));
}

#[test]
fn nothing_is_deleted_before_the_view_is_complete() {
    let range = net("fd00:0:0:1::/64");
    let present = Routes::from([(range, direct("2001:db8::2"))]);
    assert_eq!(diff(&present, &Routes::new(), false), []);
    assert_eq!(
        diff(&present, &Routes::new(), true),
        [RouteOp::Delete(range)]
    );
}

fn some_hop() -> impl Strategy<Value = Hop> {
    let v4 = (0u8..3).prop_map(|host| IpAddr::from([192, 0, 2, host]));
    let v6 = (0u16..3).prop_map(|host| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]));
    let address = prop_oneof![v4, v6];
    prop_oneof![
        address.clone().prop_map(Hop::Direct),
        (address, 1u32..3, 1400u32..1402).prop_map(|(remote, vni, mtu)| {
            Hop::Tunnel(Tunnel {
                remote,
                vni,
                source: None,
                mtu,
            })
        }),
    ]
}

fn some_range() -> impl Strategy<Value = IpNet> {
    let v4 = (0u8..8).prop_map(|n| IpNet::new([10, 244, n, 0].into(), 24).unwrap());
    let v6 = (0u16..8).prop_map(|n| IpNet::new([0xfd00, 0, 0, n, 0, 0, 0, 0].into(), 64).unwrap());
    prop_oneof![v4, v6]
}

fn some_routes() -> impl Strategy<Value = Routes> {
    prop::collection::btree_map(some_range(), some_hop(), 0..8)
}

fn some_nodes() -> impl Strategy<Value = Vec<(Vec<IpNet>, Vec<IpAddr>)>> {
    let near = (2u8..9).prop_map(|host| IpAddr::from([192, 0, 2, host]));
    let far = (2u8..9).prop_map(|host| IpAddr::from([198, 51, 100, host]));
    let near_v6 = (2u16..9).prop_map(|host| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]));
    let far_v6 = (2u16..9).prop_map(|host| IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, host]));
    let address = prop_oneof![near, far, near_v6, far_v6];
    let node = (
        prop::collection::vec(some_range(), 0..3),
        prop::collection::vec(address, 0..3),
    );
    prop::collection::vec(node, 0..8)
}

proptest! {
    #[test]
    fn the_steps_lead_to_what_is_wanted_and_then_there_are_none(
        present in some_routes(), wanted in some_routes(), synced: bool,
    ) {
        let mut table = present.clone();
        for op in diff(&present, &wanted, synced) {
            match op {
                RouteOp::Replace(range, hop) => { table.insert(range, hop); }
                RouteOp::Delete(range) => { prop_assert!(table.remove(&range).is_some()); }
            }
        }
        for (range, hop) in &wanted {
            prop_assert_eq!(table.get(range), Some(hop));
        }
        if synced {
            prop_assert_eq!(&table, &wanted);
        } else {
            prop_assert!(present.keys().all(|range| table.contains_key(range)));
        }
        prop_assert_eq!(diff(&table, &wanted, synced), []);
    }

    #[test]
    fn every_range_has_a_hop_that_works_or_a_reason(
        nodes in some_nodes(), which in 0usize..4, mtu in 1200u32..9000,
    ) {
        let v4 = uplink("192.0.2.1", "192.0.2.0/24", mtu);
        let v6 = uplink("2001:db8::1", "2001:db8::/64", mtu);
        let uplinks = [vec![v4.clone()], vec![v6.clone()], vec![v4.clone(), v6.clone()], vec![v6, v4]];
        let uplinks = &uplinks[which];
        let mut view = view(&[OWN]);
        for (n, (pod_cidrs, internal_ips)) in nodes.into_iter().enumerate() {
            let node = Node { pod_cidrs, internal_ips, zone: None };
            view.nodes.insert(format!("node-{n}").as_str().into(), Arc::new(node));
        }
        let peers = wanted(&view, "own", &underlay(uplinks));
        for (name, node) in view.nodes.iter().filter(|(name, _)| &***name != "own") {
            for range in ranges(node) {
                let held = |address: &IpAddr| uplinks.iter().any(|uplink| uplink.holds(*address));
                match &peers[name][&range] {
                    Ok(Hop::Direct(next_hop)) => {
                        prop_assert!(node.internal_ips.contains(next_hop) && held(next_hop));
                        prop_assert!(next_hop.is_ipv6() || range.addr().is_ipv4());
                    }
                    Ok(Hop::Tunnel(tunnel)) => {
                        prop_assert!(node.internal_ips.contains(&tunnel.remote));
                        let usable = |address: &&IpAddr| held(address) && address.is_ipv4() == range.addr().is_ipv4();
                        prop_assert_eq!(node.internal_ips.iter().find(usable), None);
                        prop_assert!(tunnel.mtu < mtu);
                        prop_assert!(range.addr().is_ipv4() || tunnel.mtu >= LEAST_MTU_V6);
                        prop_assert_eq!(tunnel.source.map(|it| it.is_ipv4()), Some(range.addr().is_ipv4()));
                    }
                    Err(Refusal::NoAddress) => prop_assert!(node.internal_ips.is_empty()),
                    Err(_) => {}
                }
            }
        }
        // No two nodes share a route.
        let taken: Vec<IpNet> = peers.values().flatten().filter(|(_, hop)| hop.is_ok()).map(|(range, _)| *range).collect();
        prop_assert_eq!(taken.len(), routes(&peers).len());
    }
}

#[test]
fn a_node_is_cut_off_when_its_kernel_takes_no_route_or_there_is_none() {
    let range = |text: &str| text.parse::<IpNet>().unwrap();
    let direct = || Ok(Hop::Direct([192, 0, 2, 2].into()));
    let peers = |hops: Vec<(&str, &str, Result<Hop, Refusal>)>| -> Peers {
        let mut peers = Peers::new();
        for (node, of, hop) in hops {
            peers.entry(node.into()).or_default().insert(range(of), hop);
        }
        peers
    };
    assert_eq!(cut_off(&Peers::new()), None, "it is alone");
    let odd = || ("odd", "10.244.3.0/24", Err(Refusal::NoAddress));
    let well = || ("well", "10.244.2.0/24", direct());
    assert_eq!(cut_off(&peers(vec![well()])), None);
    assert_eq!(
        cut_off(&peers(vec![odd(), well()])),
        None,
        "odd's own fault"
    );
    assert_eq!(
        cut_off(&peers(vec![odd()])).unwrap(),
        "no route to the pods of node odd: it has not told its address yet"
    );
    let failed = Err(Refusal::Failed("network is down".to_owned()));
    let failed = ("third", "10.244.4.0/24", failed);
    assert_eq!(
        cut_off(&peers(vec![odd(), well(), failed])).unwrap(),
        "no route to the pods of node third: network is down"
    );
}
