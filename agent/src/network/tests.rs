//! The pod network in the kernel: nodes are network namespaces joined by a veth pair.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::addresses::{gateway, host_mac, pod_mac, veth_name};
use super::namespaces::{Namespace, create_pinned, remove_pinned, within};
use super::netlink::{Netlink, VethPair};
use super::pods::{self, VethNetwork, adopted_range};
use super::{NetworkError, PodNetwork, leftovers, routing};
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

/// Address of the n-th node on the link that nodes share.
fn node_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

fn range(n: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 244, n, 0), 24).unwrap()
}

/// Two nodes with one link between them.
fn two_nodes(lab: &mut Lab) -> [PathBuf; 2] {
    let nodes = [lab.netns("node-1"), lab.netns("node-2")];
    let [one, two] = nodes.clone();
    on_node(&one.clone(), move || async move {
        let second = std::fs::File::open(&two).unwrap();
        let here = Netlink::open().unwrap();
        let pair = VethPair {
            host_name: "up0",
            host_mac: [2, 0, 0, 0, 0, 1],
            pod_name: "up0",
            pod_mac: [2, 0, 0, 0, 0, 2],
            pod_netns: std::os::fd::AsFd::as_fd(&second),
            mtu: 1400,
        };
        here.add_veth(pair).await.unwrap();
        let there = Netlink::open_in(&two).await.unwrap().unwrap();
        for (n, netlink) in [(1, here), (2, there)] {
            let lo = netlink.link("lo").await.unwrap().unwrap();
            netlink.set_up(lo.index).await.unwrap();
            let link = netlink.link("up0").await.unwrap().unwrap();
            netlink
                .put_address(link.index, Ipv4Net::new(node_ip(n), 24).unwrap())
                .await
                .unwrap();
            netlink.set_up(link.index).await.unwrap();
        }
    });
    nodes
}

fn attach(node: &Path, n: u8, pods: &[(&str, &Path)]) -> Vec<IpAddr> {
    let pods: Vec<_> = pods
        .iter()
        .map(|(uid, netns)| ((*uid).to_owned(), (*netns).to_owned()))
        .collect();
    on_node(node, move || async move {
        let network = VethNetwork::set_up(range(n), node_ip(n)).await.unwrap();
        let mut addresses = Vec::new();
        for (uid, netns) in pods {
            addresses.extend(network.attach(&uid, &netns).await.unwrap());
        }
        addresses
    })
}

/// Connects from one namespace to an address in another; says whom the server saw.
fn reach(from: &Path, to: &Path, address: IpAddr) -> std::io::Result<IpAddr> {
    let listener = within(Namespace::Net, to, move || TcpListener::bind((address, 0))).unwrap()?;
    let target = listener.local_addr()?;
    let timeout = Duration::from_secs(2);
    let mut stream = within(Namespace::Net, from, move || {
        TcpStream::connect_timeout(&target, timeout)
    })
    .unwrap()?;
    // More than one segment, so that an MTU that does not fit shows.
    stream.write_all(&[7; 8000])?;
    drop(stream);
    let (mut accepted, peer): (TcpStream, SocketAddr) = listener.accept()?;
    accepted.set_read_timeout(Some(timeout))?;
    let received = std::io::copy(&mut accepted, &mut std::io::sink())?;
    assert_eq!(received, 8000);
    Ok(peer.ip())
}

/// Whether the node hears a datagram that `pod` sends to the gateway with the source address `source`.
fn hears(node: &Path, pod: &Path, source: IpAddr) -> bool {
    let target = (gateway(range(1)), 5353);
    let receiver = within(Namespace::Net, node, move || UdpSocket::bind(target))
        .unwrap()
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    on_node(pod, move || async move {
        let IpAddr::V4(source) = source else {
            unreachable!()
        };
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
    let mut lab = Lab::new();
    let [one, two] = two_nodes(&mut lab);
    let [a, b, c] = ["pod-a", "pod-b", "pod-c"].map(|name| lab.netns(name));
    let on_one = attach(&one, 1, &[("uid-a", &a), ("uid-b", &b)]);
    let on_two = attach(&two, 2, &[("uid-c", &c)]);
    assert_eq!(
        on_one,
        [IpAddr::from([10, 244, 1, 2]), IpAddr::from([10, 244, 1, 3])]
    );

    let cluster = Cluster::default();
    cluster.update(|view| {
        for n in [1, 2] {
            let node = Node {
                pod_cidrs: vec![range(n).into()],
                internal_ips: vec![node_ip(n).into()],
                zone: None,
            };
            view.nodes
                .insert(format!("node-{n}").into(), Arc::new(node));
        }
        Vec::new()
    });
    for (n, node) in [(1, &one), (2, &two)] {
        let cluster = cluster.clone();
        on_node(node, move || async move {
            let netlink = Netlink::open().unwrap();
            routing::pass(&netlink, &cluster, &format!("node-{n}"), node_ip(n))
                .await
                .unwrap();
        });
    }

    assert_eq!(
        reach(&a, &b, on_one[1]).unwrap(),
        on_one[0],
        "pod to pod on one node"
    );
    assert_eq!(
        reach(&a, &c, on_two[0]).unwrap(),
        on_one[0],
        "pod to pod across"
    );
    assert_eq!(reach(&c, &b, on_one[1]).unwrap(), on_two[0], "and back");
    assert_eq!(
        reach(&one, &a, on_one[0]).unwrap(),
        gateway(range(1)),
        "node to own pod"
    );
    assert_eq!(
        reach(&a, &one, gateway(range(1)).into()).unwrap(),
        on_one[0],
        "pod to gateway"
    );
    assert_eq!(
        reach(&a, &one, node_ip(1).into()).unwrap(),
        on_one[0],
        "pod to own node"
    );
    assert_eq!(
        reach(&one, &c, on_two[0]).unwrap(),
        node_ip(1),
        "node to a pod across"
    );
    assert_eq!(
        reach(&a, &two, node_ip(2).into()).unwrap(),
        on_one[0],
        "pod to the other node"
    );

    assert!(
        !hears(&one, &a, on_one[1]),
        "a pod may not speak for another address"
    );
    assert!(hears(&one, &a, on_one[0]));

    // An address without a pod is refused at once, not sent to the uplink.
    let nobody = SocketAddr::from(([10, 244, 1, 77], 80));
    let error = within(Namespace::Net, &a, move || {
        TcpStream::connect_timeout(&nobody, Duration::from_secs(2)).unwrap_err()
    })
    .unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
}

#[test]
fn routes_of_nodes_that_are_gone_stay_until_the_view_is_synced() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    on_node(&one, || async {
        let netlink = Netlink::open().unwrap();
        netlink.put_node_route(range(2), node_ip(2)).await.unwrap();
        let cluster = Cluster::default();
        routing::pass(&netlink, &cluster, "node-1", node_ip(1))
            .await
            .unwrap();
        assert_eq!(netlink.node_routes().await.unwrap().len(), 1);

        cluster.set_synced();
        routing::pass(&netlink, &cluster, "node-1", node_ip(1))
            .await
            .unwrap();
        assert_eq!(netlink.node_routes().await.unwrap().len(), 0);
        netlink.delete_node_route(range(2)).await.unwrap();
    });
}

#[test]
fn a_pod_keeps_its_address_whatever_the_agent_does() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let [a, b] = ["pod-a", "pod-b"].map(|name| lab.netns(name));
    let first = attach(&one, 1, &[("uid-a", &a)]);
    let names = link_names(&one);
    // Each call of `attach` here is a new agent that knows nothing but what the kernel tells it.
    assert_eq!(attach(&one, 1, &[("uid-a", &a)]), first);
    assert_eq!(link_names(&one), names);
    assert_ne!(attach(&one, 1, &[("uid-b", &b)]), first);
    let adopted = on_node(&one, || async { adopted_range().await.unwrap() });
    assert_eq!(adopted, Some(range(1)));

    on_node(&one, || async {
        let network = VethNetwork::set_up(range(1), node_ip(1)).await.unwrap();
        network.detach("uid-a").await.unwrap();
        network.detach("uid-a").await.unwrap();
        network.detach("never-seen").await.unwrap();
    });
    assert_eq!(link_names(&a), ["lo"]);
    assert_eq!(
        attach(&one, 1, &[("uid-a", &a)]),
        [IpAddr::from([10, 244, 1, 4])]
    );
}

#[test]
fn attach_finishes_what_a_crash_left_at_any_step() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let address = Ipv4Addr::new(10, 244, 1, 2);
    // What a whole attach does, cut off after so many steps.
    for steps in 0..=5 {
        let uid = format!("uid-{steps}");
        let pod = lab.netns(&format!("pod-{steps}"));
        let (crashed, netns) = (uid.clone(), pod.clone());
        on_node(&one, move || async move {
            VethNetwork::set_up(range(1), node_ip(1)).await.unwrap();
            let outside = Netlink::open().unwrap();
            let inside = Netlink::open_in(&netns).await.unwrap().unwrap();
            let name = veth_name(&crashed);
            if steps >= 1 {
                let file = std::fs::File::open(&netns).unwrap();
                let pair = VethPair {
                    host_name: &name,
                    host_mac: host_mac(address),
                    pod_name: "eth0",
                    pod_mac: pod_mac(address),
                    pod_netns: std::os::fd::AsFd::as_fd(&file),
                    mtu: 1400,
                };
                outside.add_veth(pair).await.unwrap();
            }
            if steps >= 2 {
                let link = inside.link("eth0").await.unwrap().unwrap();
                inside
                    .put_address(link.index, address.into())
                    .await
                    .unwrap();
                if steps >= 3 {
                    inside.set_up(link.index).await.unwrap();
                    inside
                        .put_default_route(gateway(range(1)), link.index)
                        .await
                        .unwrap();
                }
            }
            if steps >= 4 {
                let link = outside.link(&name).await.unwrap().unwrap();
                outside.set_up(link.index).await.unwrap();
                if steps >= 5 {
                    outside
                        .put_host_route(address, link.index, gateway(range(1)))
                        .await
                        .unwrap();
                }
            }
        });
        assert_eq!(
            attach(&one, 1, &[(&uid, &pod)]),
            [IpAddr::from(address)],
            "after {steps} steps"
        );
        assert_eq!(
            reach(&pod, &one, gateway(range(1)).into()).unwrap(),
            address,
            "after {steps} steps"
        );
        assert_eq!(
            reach(&one, &pod, address.into()).unwrap(),
            gateway(range(1))
        );
        on_node(&one, move || async move {
            let network = VethNetwork::set_up(range(1), node_ip(1)).await.unwrap();
            network.detach(&uid).await.unwrap();
        });
    }
}

#[test]
fn a_pod_whose_namespace_was_made_anew_moves_with_its_address() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let [before, after] = ["before", "after"].map(|name| lab.netns(name));
    let address = attach(&one, 1, &[("uid", &before)]);
    assert_eq!(attach(&one, 1, &[("uid", &after)]), address);
    assert_eq!(link_names(&before), ["lo"]);
    assert_eq!(reach(&one, &after, address[0]).unwrap(), gateway(range(1)));
}

#[test]
fn a_node_address_that_no_link_has_is_named() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let node = lab.netns("node");
    assert_eq!(
        on_node(&node, || async { adopted_range().await.unwrap() }),
        None
    );
    let error = on_node(&node, || async {
        VethNetwork::set_up(range(1), node_ip(9)).await.unwrap_err()
    });
    assert!(
        matches!(error, NetworkError::NoUplink(address) if address == node_ip(9)),
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
    let address = on_node(&one, move || async move {
        let network = Arc::new(VethNetwork::set_up(range(1), node_ip(1)).await.unwrap());
        let address = network.attach("uid", &netns).await.unwrap()[0];
        let keeper = tokio::spawn(pods::keep(network.clone()));
        let cluster = Cluster::default();
        cluster.update(|view| {
            let peer = Node {
                pod_cidrs: vec![range(2).into()],
                internal_ips: vec![node_ip(2).into()],
                zone: None,
            };
            view.set_node("node-2".into(), Some(peer))
                .into_iter()
                .collect()
        });
        let router = tokio::spawn(routing::run(cluster, "node-1".into(), node_ip(1)));
        let netlink = Netlink::open().unwrap();
        let whole = || async {
            let routes = netlink.host_routes().await.unwrap();
            let peers = netlink.node_routes().await.unwrap();
            let unreachable = netlink.unreachable_ranges().await.unwrap();
            (routes.len(), peers.len(), unreachable.len()) == (1, 1, 1)
        };
        until("the network is set up", whole).await;

        // As an operator might; the uplink's address comes back, and with it only the kernel's own routes.
        for command in [
            "ip route flush proto 75",
            "ip address flush dev lo",
            "ip address flush dev up0",
            "ip address add 192.0.2.1/24 dev up0",
        ] {
            let command = command.split(' ').collect::<Vec<_>>();
            let status = std::process::Command::new(command[0])
                .args(&command[1..])
                .status();
            assert!(status.unwrap().success(), "{command:?}");
        }
        until("the network is whole again", whole).await;
        let lo = netlink.link("lo").await.unwrap().unwrap();
        let addresses = netlink.addresses().await.unwrap();
        assert!(addresses.contains(&(lo.index, gateway(range(1)).into())));
        keeper.abort();
        router.abort();
        address
    });
    assert_eq!(reach(&node, &pod, address).unwrap(), gateway(range(1)));
}

#[test]
fn a_clean_up_that_was_interrupted_can_be_repeated() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut lab = Lab::new();
    let [one, _two] = two_nodes(&mut lab);
    let pod = lab.netns("pod");
    // One more than there are things.
    for done in 0..=3 {
        attach(&one, 1, &[("uid", &pod)]);
        on_node(&one, move || async move {
            let found = leftovers::find().await.unwrap();
            assert_eq!(found.len(), 3, "gateway, link, route: {found:?}");
            for leftover in found.iter().take(done) {
                leftovers::remove(leftover).await.unwrap();
            }
            for leftover in leftovers::find().await.unwrap() {
                leftovers::remove(&leftover).await.unwrap();
            }
            let netlink = Netlink::open().unwrap();
            let addresses = netlink.addresses().await.unwrap();
            let gateway = Ipv4Net::from(gateway(range(1)));
            assert!(
                !addresses.iter().any(|(_, address)| *address == gateway),
                "after {done}: {addresses:?}"
            );
        });
    }
}
