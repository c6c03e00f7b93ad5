//! The pod network in the kernel: nodes are network namespaces joined by veth pairs.

mod between;
mod crashes;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ipnet::IpNet;

use super::namespaces::{Namespace, create_pinned, remove_pinned, within};
use super::netlink::{Netlink, VethPair};
use super::pods::{self, Settings, VethNetwork, adopted_ranges};
use super::ranges::Ranges;
use super::routes::Peers;
use super::{NetworkError, PodNetwork, leftovers, routing, sysctl, tunnel};
use crate::cluster::{Cluster, Node};
use crate::testing::root_or_skip;

/// Namespaces that go when the test ends, however it ends.
struct Lab {
    dir: tempfile::TempDir,
    made: Vec<PathBuf>,
}

impl Lab {
    fn new() -> Self {
        Lab {
            dir: tempfile::Builder::new().prefix("kn-nt-").tempdir().unwrap(),
            made: Vec::new(),
        }
    }

    fn netns(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        create_pinned(Namespace::Net, &path).unwrap();
        self.made.push(path.clone());
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = remove_pinned(Namespace::Net, path);
        }
    }
}

#[test]
fn addresses_of_both_families_are_told_with_their_scope() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let node = lab.netns("node");
    within(Namespace::Net, &node, || {
        for line in [
            "link set lo up",
            "address add 192.0.2.7/24 dev lo",
            "address add 2001:db8::7/64 dev lo nodad",
        ] {
            let ran = std::process::Command::new("ip")
                .args(line.split(' '))
                .status();
            assert!(ran.unwrap().success(), "{line}");
        }
    })
    .unwrap();
    let found = on_node(&node, || async {
        Netlink::open().unwrap().link_addresses().await.unwrap()
    });
    for (ip, is_global) in [
        ("127.0.0.1", false),
        ("::1", false),
        ("192.0.2.7", true),
        ("2001:db8::7", true),
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        let told = found.iter().find(|it| it.address == ip);
        assert_eq!(told.map(|it| it.is_global), Some(is_global), "{ip}");
    }
}

#[test]
fn whole_tables_can_be_asked_for_at_once() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let node = lab.netns("node");
    let found = on_node(&node, || async {
        let netlink = Netlink::open().unwrap();
        let all = (0..50).map(|_| async { tokio::join!(netlink.links(), netlink.host_routes()) });
        futures::future::join_all(all).await
    });
    for (links, routes) in found {
        assert_eq!((links.unwrap().len(), routes.unwrap().len()), (1, 0));
    }
}

/// Runs a future as an agent on that node would: on a runtime whose threads are in its namespace.
fn on_node<T: Send + 'static, F: Future<Output = T>>(
    node: &Path,
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    within(Namespace::Net, node, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    })
    .unwrap()
}

/// The families that pods and nodes have.
#[derive(Clone, Copy, Debug)]
enum Stack {
    V4,
    V6,
    Dual,
    DualV6First,
}

const STACKS: [Stack; 4] = [Stack::V4, Stack::V6, Stack::Dual, Stack::DualV6First];

impl Stack {
    fn order<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Stack::V4 => vec![v4],
            Stack::V6 => vec![v6],
            Stack::Dual => vec![v4, v6],
            Stack::DualV6First => vec![v6, v4],
        }
    }

    /// Addresses of the n-th node on the link that nodes share.
    fn node_ips(self, n: u8) -> Vec<IpAddr> {
        self.order(
            [192, 0, 2, n].into(),
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()].into(),
        )
    }

    fn ranges(self, n: u8) -> Ranges {
        let v4 = IpNet::new([10, 244, n, 0].into(), 24).unwrap();
        let v6 = IpNet::new([0xfd00, 0, 0, n.into(), 0, 0, 0, 0].into(), 64).unwrap();
        Ranges::new(self.order(v4, v6)).unwrap()
    }

    fn gateways(self, n: u8) -> Vec<IpAddr> {
        self.ranges(n).gateways()
    }

    /// The addresses of a pod of the n-th node.
    fn pod(self, n: u8, number: u32) -> Vec<IpAddr> {
        self.ranges(n).addresses(number).unwrap().iter().collect()
    }

    fn settings(self, n: u8) -> Settings {
        Settings {
            ranges: self.ranges(n),
            node_ips: self.node_ips(n),
            mtu: None,
        }
    }

    fn routing(self, n: u8) -> routing::Settings {
        routing::Settings {
            own: format!("node-{n}").as_str().into(),
            node_ips: self.node_ips(n),
            port: tunnel::DEFAULT_PORT,
            vni: tunnel::DEFAULT_VNI,
        }
    }

    async fn set_up(self, n: u8) -> VethNetwork {
        VethNetwork::set_up(self.settings(n)).await.unwrap()
    }

    /// The nodes with those numbers and addresses, as the API tells of them.
    fn cluster(self, nodes: &[(u8, Vec<IpAddr>)]) -> Cluster {
        let cluster = Cluster::default();
        for (n, internal_ips) in nodes {
            let node = Node {
                pod_cidrs: self.ranges(*n).iter().collect(),
                internal_ips: internal_ips.clone(),
                zone: None,
            };
            cluster.update(|view| {
                view.set_node(format!("node-{n}").as_str().into(), Some(node))
                    .into_iter()
                    .collect()
            });
        }
        cluster.set_synced();
        cluster
    }
}

/// How many links were made: no two may have the same hardware addresses.
static MADE: AtomicU8 = AtomicU8::new(0);

/// Joins two namespaces by a link, and gives each end addresses with these prefixes.
fn join(ends: [(&Path, &str, &[&str]); 2], mtu: u32) {
    let [one, two] = ends.map(|(node, name, addresses)| {
        let addresses: Vec<IpNet> = addresses.iter().map(|it| it.parse().unwrap()).collect();
        (node.to_owned(), name.to_owned(), addresses)
    });
    on_node(&one.0.clone(), move || async move {
        let second = std::fs::File::open(&two.0).unwrap();
        let here = Netlink::open().unwrap();
        let there = Netlink::open_in(&two.0).await.unwrap().unwrap();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let pair = VethPair {
            host_name: &one.1,
            host_mac: [2, 0, 0, 0, number, 1],
            pod_name: &two.1,
            pod_mac: [2, 0, 0, 0, number, 2],
            pod_netns: std::os::fd::AsFd::as_fd(&second),
            mtu,
        };
        here.add_veth(pair).await.unwrap();
        for (netlink, (node, name, addresses)) in [(here, one.clone()), (there, two.clone())] {
            let lo = netlink.link("lo").await.unwrap().unwrap();
            netlink.set_up(lo.index).await.unwrap();
            let link = netlink.link(&name).await.unwrap().unwrap();
            // Otherwise neighbours are asked for only when the link-local address was found to be nobody else's.
            let setting = format!("net/ipv6/conf/{name}/accept_dad");
            within(Namespace::Net, &node, move || sysctl::set(&setting, "0"))
                .unwrap()
                .unwrap();
            for address in addresses {
                netlink.put_address(link.index, address).await.unwrap();
            }
            netlink.set_up(link.index).await.unwrap();
        }
    });
}

/// Two nodes with one link between them.
fn two_nodes(lab: &mut Lab) -> [PathBuf; 2] {
    let nodes = [lab.netns("node-1"), lab.netns("node-2")];
    let ends = [
        (&*nodes[0], "up0", &["192.0.2.1/24", "2001:db8::1/64"][..]),
        (&*nodes[1], "up0", &["192.0.2.2/24", "2001:db8::2/64"][..]),
    ];
    join(ends, 1400);
    nodes
}

#[test]
fn an_mtu_that_cannot_be_is_refused_in_a_sentence() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [node, _] = two_nodes(&mut lab);
    let refused = |stack: Stack, mtu| {
        on_node(&node, move || async move {
            let settings = Settings {
                mtu: Some(mtu),
                ..stack.settings(1)
            };
            let refused = VethNetwork::set_up(settings).await.map(drop);
            refused.unwrap_err().to_string()
        })
    };
    assert_eq!(
        refused(Stack::V4, 1500),
        "--pod-mtu 1500 is more than the 1400 of link up0, by which pods' packets leave"
    );
    let narrow = refused(Stack::Dual, 1200);
    assert!(
        narrow.contains("fewer than the 1280 that IPv6 needs"),
        "{narrow}"
    );
}

/// The addresses of each pod.
fn attach(node: &Path, stack: Stack, n: u8, pods: &[(&str, &Path)]) -> Vec<Vec<IpAddr>> {
    let pods: Vec<_> = pods
        .iter()
        .map(|(uid, netns)| ((*uid).to_owned(), (*netns).to_owned()))
        .collect();
    on_node(node, move || async move {
        let network = stack.set_up(n).await;
        let mut addresses = Vec::new();
        for (uid, netns) in pods {
            addresses.push(network.attach(&uid, &netns).await.unwrap());
        }
        addresses
    })
}

fn route(node: &Path, stack: Stack, n: u8, cluster: &Cluster) -> Peers {
    let cluster = cluster.clone();
    on_node(node, move || async move {
        let netlink = Netlink::open().unwrap();
        let peers = routing::pass(&netlink, &cluster, &stack.routing(n)).await;
        peers.unwrap()
    })
}

/// Connects from one namespace to an address in another; says whom the server saw.
fn reach(from: &Path, to: &Path, address: IpAddr) -> std::io::Result<IpAddr> {
    let listener = within(Namespace::Net, to, move || TcpListener::bind((address, 0))).unwrap()?;
    let target = listener.local_addr()?;
    let timeout = Duration::from_secs(20);
    let mut stream = within(Namespace::Net, from, move || {
        TcpStream::connect_timeout(&target, timeout)
    })
    .unwrap()?;
    // More than one segment, so that an MTU that does not fit shows.
    let sender = std::thread::spawn(move || stream.write_all(&[7; 80_000]));
    let (mut accepted, peer): (TcpStream, SocketAddr) = listener.accept()?;
    accepted.set_read_timeout(Some(timeout))?;
    let received = std::io::copy(&mut accepted, &mut std::io::sink())?;
    assert_eq!(received, 80_000);
    sender.join().unwrap()?;
    Ok(peer.ip())
}

/// Whether the node hears a datagram that `pod` sends to the gateway with the source address `source`.
fn hears(node: &Path, pod: &Path, source: IpAddr) -> bool {
    let gateway = Stack::V4.gateways(1)[0];
    let receiver = within(Namespace::Net, node, move || UdpSocket::bind((gateway, 0)))
        .unwrap()
        .unwrap();
    let target = receiver.local_addr().unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    on_node(pod, move || async move {
        let netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").await.unwrap().unwrap();
        netlink.put_address(lo.index, source.into()).await.unwrap();
        UdpSocket::bind((source, 0))
            .unwrap()
            .send_to(b"forged?", target)
            .unwrap();
    });
    receiver.recv(&mut [0; 16]).is_ok()
}

fn link_names(netns: &Path) -> Vec<String> {
    on_node(netns, || async {
        let links = Netlink::open().unwrap().links().await.unwrap();
        links.into_iter().map(|link| link.name).collect()
    })
}

#[test]
fn pods_and_nodes_reach_each_other_on_one_node_and_across() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    for stack in STACKS {
        let mut lab = Lab::new();
        let [one, two] = two_nodes(&mut lab);
        let [a, b, c] = ["pod-a", "pod-b", "pod-c"].map(|name| lab.netns(name));
        let on_one = attach(&one, stack, 1, &[("uid-a", &a), ("uid-b", &b)]);
        let on_two = attach(&two, stack, 2, &[("uid-c", &c)]);
        assert_eq!(on_one, [stack.pod(1, 2), stack.pod(1, 3)]);

        let cluster = stack.cluster(&[1, 2].map(|n| (n, stack.node_ips(n))));
        route(&one, stack, 1, &cluster);
        route(&two, stack, 2, &cluster);

        for family in 0..on_one[0].len() {
            let [a_ip, b_ip] = [on_one[0][family], on_one[1][family]];
            let c_ip = on_two[0][family];
            let gateway = stack.gateways(1)[family];
            let [node_1, node_2] = [1, 2].map(|n| stack.node_ips(n)[family]);
            for (from, to, address, seen, what) in [
                (&a, &b, b_ip, a_ip, "pod to pod on one node"),
                (&a, &c, c_ip, a_ip, "pod to pod across"),
                (&c, &b, b_ip, c_ip, "and back"),
                (&one, &a, a_ip, gateway, "node to own pod"),
                (&a, &one, gateway, a_ip, "pod to gateway"),
                (&a, &one, node_1, a_ip, "pod to own node"),
                (&one, &c, c_ip, node_1, "node to a pod across"),
                (&a, &two, node_2, a_ip, "pod to the other node"),
            ] {
                let what = format!("{stack:?}: {what} at {address}");
                assert_eq!(reach(from, to, address).expect(&what), seen, "{what}");
            }
            // An address without a pod is refused at once, not sent to the uplink. IPv6 has its own word for it.
            let nobody = SocketAddr::new(stack.pod(1, 77)[family], 80);
            let error = within(Namespace::Net, &a, move || {
                TcpStream::connect_timeout(&nobody, Duration::from_secs(2)).unwrap_err()
            })
            .unwrap();
            use std::io::ErrorKind::{HostUnreachable, NetworkUnreachable};
            let expected = if nobody.is_ipv4() {
                HostUnreachable
            } else {
                NetworkUnreachable
            };
            assert_eq!(error.kind(), expected, "{error}");
        }
    }
}

#[test]
fn a_pod_may_not_speak_for_another_address() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let [a, b] = ["pod-a", "pod-b"].map(|name| lab.netns(name));
    let pods = attach(&one, Stack::V4, 1, &[("uid-a", &a), ("uid-b", &b)]);
    assert!(!hears(&one, &a, pods[1][0]));
    assert!(hears(&one, &a, pods[0][0]));
}

#[test]
fn a_pod_keeps_its_addresses_whatever_the_agent_does() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    for stack in STACKS {
        let mut lab = Lab::new();
        let [one, _two] = two_nodes(&mut lab);
        let [a, b] = ["pod-a", "pod-b"].map(|name| lab.netns(name));
        let first = attach(&one, stack, 1, &[("uid-a", &a)]);
        let names = link_names(&one);
        // Each call of `attach` here is a new agent that knows nothing but what the kernel tells it.
        assert_eq!(attach(&one, stack, 1, &[("uid-a", &a)]), first);
        assert_eq!(link_names(&one), names);
        assert_ne!(attach(&one, stack, 1, &[("uid-b", &b)]), first);
        let adopted = on_node(&one, || async { adopted_ranges().await.unwrap() });
        assert_eq!(adopted, Some(stack.ranges(1)));

        on_node(&one, move || async move {
            let network = stack.set_up(1).await;
            network.detach("uid-a").await.unwrap();
            network.detach("uid-a").await.unwrap();
            network.detach("never-seen").await.unwrap();
        });
        assert_eq!(link_names(&a), ["lo"]);
        let again = attach(&one, stack, 1, &[("uid-a", &a)]);
        assert_eq!(again, [stack.pod(1, 4)]);
    }
}

#[test]
fn a_pod_from_before_the_node_had_ipv6_stays_as_it_is() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let [old, new] = ["old", "new"].map(|name| lab.netns(name));
    let before = attach(&one, Stack::V4, 1, &[("uid-old", &old)]);
    let after = attach(
        &one,
        Stack::Dual,
        1,
        &[("uid-old", &old), ("uid-new", &new)],
    );
    assert_eq!(after, [before[0].clone(), Stack::Dual.pod(1, 3)]);
    let gateway = Stack::Dual.gateways(1)[1];
    assert_eq!(reach(&new, &one, gateway).unwrap(), after[1][1]);
    assert_eq!(reach(&new, &old, after[0][0]).unwrap(), after[1][0]);
}

#[test]
fn a_pod_whose_namespace_was_made_anew_moves_with_its_address() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let [before, after] = ["before", "after"].map(|name| lab.netns(name));
    let stack = Stack::Dual;
    let addresses = attach(&one, stack, 1, &[("uid", &before)]);
    assert_eq!(attach(&one, stack, 1, &[("uid", &after)]), addresses);
    assert_eq!(link_names(&before), ["lo"]);
    for (address, gateway) in addresses[0].iter().zip(stack.gateways(1)) {
        assert_eq!(reach(&one, &after, *address).unwrap(), gateway);
    }
}

#[test]
fn a_node_address_that_no_link_has_is_named() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let node = lab.netns("node");
    assert_eq!(
        on_node(&node, || async { adopted_ranges().await.unwrap() }),
        None
    );
    let error = on_node(&node, || async {
        let settings = Stack::V4.settings(9);
        VethNetwork::set_up(settings).await.unwrap_err()
    });
    assert!(
        matches!(error, NetworkError::NoUplink(address) if address == IpAddr::from([192, 0, 2, 9])),
        "{error}"
    );
}

/// Waits for something that another task brings about.
async fn until<F: Future<Output = bool>>(what: &str, mut met: impl FnMut() -> F) {
    for _ in 0..200 {
        if met().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what}: not within five seconds");
}

#[test]
fn what_somebody_flushes_is_put_back() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let pod = lab.netns("pod");
    let (node, netns) = (one.clone(), pod.clone());
    let stack = Stack::Dual;
    let addresses = on_node(&one, move || async move {
        let network = Arc::new(stack.set_up(1).await);
        let addresses = network.attach("uid", &netns).await.unwrap();
        let keeper = tokio::spawn(pods::keep(network.clone()));
        let cluster = stack.cluster(&[(2, stack.node_ips(2))]);
        let (peers, _) = tokio::sync::watch::channel(Peers::new());
        let router = tokio::spawn(routing::run(cluster, stack.routing(1), peers, |_, _| {}));
        let netlink = Netlink::open().unwrap();
        let whole = || async {
            let routes = netlink.host_routes().await.unwrap();
            let peers = netlink.node_routes().await.unwrap();
            let unreachable = netlink.unreachable_ranges().await.unwrap();
            (routes.len(), peers.len(), unreachable.len()) == (2, 2, 2)
        };
        until("the network is set up", whole).await;

        // As an operator might; the uplink's addresses come back, and with them only the kernel's own routes.
        for command in [
            "ip route flush proto 75",
            "ip -6 route flush proto 75",
            "ip address flush dev lo",
            "ip address flush dev up0",
            "ip address add 192.0.2.1/24 dev up0",
            "ip address add 2001:db8::1/64 dev up0 nodad",
        ] {
            let command = command.split(' ').collect::<Vec<_>>();
            let status = std::process::Command::new(command[0])
                .args(&command[1..])
                .status();
            assert!(status.unwrap().success(), "{command:?}");
        }
        until("the network is whole again", whole).await;
        let lo = netlink.link("lo").await.unwrap().unwrap();
        let there = netlink.addresses().await.unwrap();
        for gateway in stack.gateways(1) {
            assert!(there.contains(&(lo.index, gateway.into())));
        }
        keeper.abort();
        router.abort();
        addresses
    });
    for (address, gateway) in addresses.into_iter().zip(stack.gateways(1)) {
        assert_eq!(reach(&node, &pod, address).unwrap(), gateway);
    }
}
