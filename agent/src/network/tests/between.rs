//! Between nodes: directly and by the tunnel, for each pair, of both families.

use super::*;
use crate::network::routes::{Hop, Refusal};

/// Three nodes: the first two on one link, the third behind a router. Its link takes `far_mtu`.
fn three_nodes(lab: &mut Lab, far_mtu: u32) -> [PathBuf; 3] {
    let [one, two, three, router] =
        ["node-1", "node-2", "node-3", "router"].map(|name| lab.netns(name));
    // A router with a port on the link of the first, and one that leads to the second.
    join(
        [
            (&one, "up0", &["192.0.2.1/24", "2001:db8::1/64"]),
            (&router, "r1", &[]),
        ],
        1500,
    );
    join(
        [
            (&two, "up0", &["192.0.2.2/24", "2001:db8::2/64"]),
            (&router, "r2", &[]),
        ],
        1500,
    );
    join(
        [
            (&three, "up0", &["198.51.100.3/24", "2001:db8:9::3/64"]),
            (&router, "r3", &["198.51.100.254/24", "2001:db8:9::fe/64"]),
        ],
        far_mtu,
    );
    command(&router, "ip link add br0 type bridge");
    for port in ["r1", "r2"] {
        command(&router, &format!("ip link set {port} master br0"));
    }
    command(&router, "ip link set br0 up");
    command(&router, "ip address add 192.0.2.254/24 dev br0");
    command(&router, "ip address add 2001:db8::fe/64 dev br0 nodad");
    command(
        &router,
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    );
    for node in [&one, &two] {
        command(node, "ip route add default via 192.0.2.254");
        command(node, "ip route add default via 2001:db8::fe");
    }
    command(&three, "ip route add default via 198.51.100.254");
    command(&three, "ip route add default via 2001:db8:9::fe");
    [one, two, three]
}

fn command(node: &Path, line: &str) {
    let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let output = within(Namespace::Net, node, move || {
        std::process::Command::new(&words[0])
            .args(&words[1..])
            .output()
    });
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

fn node_ips(stack: Stack, n: u8) -> Vec<IpAddr> {
    match n {
        3 => stack.order(
            [198, 51, 100, 3].into(),
            [0x2001, 0xdb8, 9, 0, 0, 0, 0, 3].into(),
        ),
        n => stack.node_ips(n),
    }
}

/// An agent of node `n` does all it has to, once.
fn run(
    node: &Path,
    pods: Stack,
    underlay: Stack,
    n: u8,
    cluster: &Cluster,
    pod: &Path,
) -> (Vec<IpAddr>, Peers) {
    let (cluster, pod) = (cluster.clone(), pod.to_owned());
    on_node(node, move || async move {
        let settings = Settings {
            node_ips: node_ips(underlay, n),
            ..pods.settings(n)
        };
        let network = VethNetwork::set_up(settings).await.unwrap();
        let addresses = network.attach(&format!("uid-{n}"), &pod).await.unwrap();
        let netlink = Netlink::open().unwrap();
        let settings = routing::Settings {
            node_ips: node_ips(underlay, n),
            ..underlay.routing(n)
        };
        let peers = routing::pass(&netlink, &cluster, &settings).await.unwrap();
        (addresses, peers)
    })
}

fn paths(peers: &Peers, node: &str) -> Vec<&'static str> {
    let hops = peers[node].values();
    hops.map(|hop| match hop {
        Ok(Hop::Direct(_)) => "direct",
        Ok(Hop::Tunnel(_)) => "vxlan",
        Err(why) => panic!("{node}: {why}"),
    })
    .collect()
}

#[test]
fn each_pair_of_nodes_is_joined_its_own_way_whatever_families_there_are() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let stacks = [
        (Stack::V4, Stack::V4),
        (Stack::V6, Stack::V6),
        (Stack::Dual, Stack::Dual),
        (Stack::DualV6First, Stack::DualV6First),
        // Pods of both families over nodes of one.
        (Stack::Dual, Stack::V4),
        (Stack::Dual, Stack::V6),
    ];
    for (pods, underlay) in stacks {
        let mut lab = Lab::new();
        let nodes = three_nodes(&mut lab, 1500);
        let cluster = pods.cluster(&[1, 2, 3].map(|n| (n, node_ips(underlay, n))));
        let netns = [1, 2, 3].map(|n| lab.netns(&format!("pod-{n}")));
        let mut given = Vec::new();
        for (n, (node, pod)) in (1..).zip(nodes.iter().zip(&netns)) {
            let (addresses, peers) = run(node, pods, underlay, n, &cluster, pod);
            given.push(addresses);
            let families = pods.gateways(n).len();
            // IPv6 pods on nodes of IPv4 have no next hop, though they share the link.
            let near = match (pods, underlay) {
                (Stack::Dual, Stack::V4) => vec!["direct", "vxlan"],
                _ => vec!["direct"; families],
            };
            let far = vec!["vxlan"; families];
            let expected: [(&str, &Vec<&str>); 2] = match n {
                1 => [("node-2", &near), ("node-3", &far)],
                2 => [("node-1", &near), ("node-3", &far)],
                _ => [("node-1", &far), ("node-2", &far)],
            };
            for (peer, expected) in expected {
                assert_eq!(
                    &paths(&peers, peer),
                    expected,
                    "{pods:?} over {underlay:?}: {n} to {peer}"
                );
            }
        }
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)] {
            for (target, source) in given[to].iter().zip(&given[from]) {
                let seen = reach(&netns[from], &netns[to], *target);
                let what = format!("{pods:?} over {underlay:?}: {from} to {to}");
                assert_eq!(seen.expect(&what), *source, "{what}");
                let seen = reach(&nodes[from], &netns[to], *target);
                assert!(seen.is_ok(), "{what}, from the node: {seen:?}");
            }
        }
    }
}

#[test]
fn a_node_that_goes_is_unrouted_and_with_the_last_one_the_tunnel() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _, _] = three_nodes(&mut lab, 1500);
    let stack = Stack::Dual;
    let all = stack.cluster(&[1, 2, 3].map(|n| (n, node_ips(stack, n))));
    let pod = lab.netns("pod");
    run(&one, stack, stack, 1, &all, &pod);
    let routes = |node: &Path| {
        on_node(node, || async {
            Netlink::open().unwrap().node_routes().await.unwrap()
        })
    };
    let present = routes(&one);
    assert_eq!(present.len(), 4);
    assert!(link_names(&one).contains(&tunnel::TUNNEL_LINK.to_owned()));
    // A new agent finds everything as it should be, and changes nothing.
    let index = |node: &Path| {
        on_node(node, || async {
            let link = Netlink::open()
                .unwrap()
                .link(tunnel::TUNNEL_LINK)
                .await
                .unwrap();
            link.map(|link| link.index)
        })
    };
    let before = index(&one);
    run(&one, stack, stack, 1, &all, &pod);
    assert_eq!((index(&one), routes(&one)), (before, present));
    // It knows nobody yet: what is there stays.
    run(&one, stack, stack, 1, &Cluster::default(), &pod);
    assert_eq!((index(&one), routes(&one).len()), (before, 4));

    let without = stack.cluster(&[1, 2].map(|n| (n, node_ips(stack, n))));
    run(&one, stack, stack, 1, &without, &pod);
    assert_eq!((index(&one), routes(&one).len()), (None, 2));
    run(&one, stack, stack, 1, &stack.cluster(&[]), &pod);
    assert_eq!(routes(&one).len(), 0);
}

#[test]
fn each_way_takes_what_fits_and_follows_its_link() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, two, three] = three_nodes(&mut lab, 1500);
    let stack = Stack::Dual;
    let cluster = stack.cluster(&[1, 2, 3].map(|n| (n, node_ips(stack, n))));
    let netns = [1, 2, 3].map(|n| lab.netns(&format!("pod-{n}")));
    let mut given = Vec::new();
    for (n, (node, pod)) in (1..).zip([&one, &two, &three].into_iter().zip(&netns)) {
        given.push(run(node, stack, stack, n, &cluster, pod).0);
    }
    // The headers of IP and UDP.
    let headers = [28_usize, 48];
    for (family, header) in headers.into_iter().enumerate() {
        let learnt =
            |peer: usize, size: usize| learnt_mtu(&netns[0], given[peer][family], size - header);
        assert_eq!(learnt(1, 1500), None, "directly, the whole size");
        assert_eq!(learnt(2, 1450), None, "wrapped, what fits");
        assert_eq!(learnt(2, 1500), Some(1450), "wrapped, what does not");
    }
    // The link becomes narrower.
    command(&one, "ip link set up0 mtu 1400");
    let (resized, pod) = (one.clone(), netns[0].clone());
    on_node(&one, move || async move {
        let network = stack.set_up(1).await;
        network.attach("uid-1", &pod).await.unwrap();
        network.restore().await.unwrap();
    });
    run(&resized, stack, stack, 1, &cluster, &netns[0]);
    let mtu = |node: &Path, name: &'static str| {
        on_node(node, move || async move {
            Netlink::open()
                .unwrap()
                .link(name)
                .await
                .unwrap()
                .unwrap()
                .mtu
        })
    };
    assert_eq!(mtu(&netns[0], "eth0"), 1400);
    assert_eq!(mtu(&one, tunnel::TUNNEL_LINK), 1350);
    assert_eq!(learnt_mtu(&netns[0], given[2][0], 1400 - 28), Some(1350));
    let seen = reach(&netns[0], &netns[2], given[2][1]);
    assert_eq!(seen.unwrap(), given[0][1]);
}

/// What `pod` has learnt of the way to `to`, after as much was sent there as its link takes; `None` when nobody objected.
fn learnt_mtu(pod: &Path, to: IpAddr, sent: usize) -> Option<u32> {
    let any: IpAddr = match to {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    within(Namespace::Net, pod, move || {
        let socket = UdpSocket::bind((any, 0)).unwrap();
        // Nobody listens there: that is told, too, and an error of a later call.
        let _ = socket.send_to(&vec![0; sent], (to, 9));
        std::thread::sleep(Duration::from_millis(50));
        let output = std::process::Command::new("ip")
            .args(["route", "get", &to.to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_whitespace();
        words.find(|word| *word == "mtu")?;
        words.next()?.parse().ok()
    })
    .unwrap()
}

#[test]
fn what_cannot_be_is_said_in_a_sentence() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let refused = |ranges: &[&str], mtu| {
        let ranges = Ranges::new(ranges.iter().map(|range| range.parse().unwrap())).unwrap();
        let settings = Settings {
            ranges,
            mtu,
            ..Stack::Dual.settings(1)
        };
        on_node(&one, || async {
            VethNetwork::set_up(settings).await.unwrap_err().to_string()
        })
    };
    assert_eq!(
        refused(&["192.0.0.0/16"], None),
        "the node's pod range 192.0.0.0/16 overlaps 192.0.2.0/24, the network of its own link up0: \
         give the cluster a --pod-cidr that no machine's address is in, delete the node and let it join again"
    );
    assert!(refused(&["10.244.1.0/24", "2001:db8::/96"], None).contains("2001:db8::/64"));
    assert_eq!(
        refused(&["10.244.1.0/24"], Some(1500)),
        "--pod-mtu 1500 is more than the 1400 of link up0, by which pods' packets leave"
    );
    assert!(refused(&["fd00::/64"], Some(1279)).contains("fewer than the 1280 that IPv6 needs"));

    // A tunnel that cannot be made is the reason for those whom it would have led to, and for nobody else.
    let cluster = Stack::V4.cluster(&[
        (2, vec![[192, 0, 2, 2].into()]),
        (3, vec![[198, 51, 100, 3].into()]),
    ]);
    command(
        &one,
        "ip link add other type vxlan id 9 dstport 8472 local 192.0.2.1",
    );
    command(&one, "ip link set other up");
    let peers = route(&one, Stack::V4, 1, &cluster);
    assert_eq!(paths(&peers, "node-2"), ["direct"]);
    let why = peers["node-3"]
        .values()
        .next()
        .unwrap()
        .clone()
        .unwrap_err();
    assert!(
        matches!(&why, Refusal::Failed(why) if why.contains("UDP port 8472")),
        "{why}"
    );
    command(&one, "ip link del other");
    assert_eq!(
        paths(&route(&one, Stack::V4, 1, &cluster), "node-3"),
        ["vxlan"]
    );
}

#[test]
fn a_link_that_takes_router_advertisements_goes_on_taking_them() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let read = |name: &'static str| {
        within(Namespace::Net, &one, move || {
            std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap()
        })
        .unwrap()
    };
    attach(&one, Stack::V4, 1, &[]);
    assert_eq!(
        read("all/forwarding").trim(),
        "0",
        "pods of IPv4 leave IPv6 alone"
    );
    assert_eq!(read("up0/accept_ra").trim(), "1");
    for _ in 0..2 {
        attach(&one, Stack::Dual, 1, &[]);
        assert_eq!(read("all/forwarding").trim(), "1");
        assert_eq!(read("up0/accept_ra").trim(), "2");
    }
    command(&one, "sysctl -qw net.ipv6.conf.up0.accept_ra=0");
    attach(&one, Stack::Dual, 1, &[]);
    assert_eq!(
        read("up0/accept_ra").trim(),
        "0",
        "one that does not take them stays so"
    );
}
