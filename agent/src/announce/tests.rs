//! Announcing on a real link: two nodes and a client are network namespaces on one bridge.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::election::{BEAT, Dispute, Election, Own, Sign};
use super::links::uplinks;
use super::speaker::Speaker;
use super::wanted::Who;
use crate::cluster::Name;
use crate::network::addresses::Mac;
use crate::network::namespaces::{Namespace, create_pinned, remove_pinned, within};
use crate::network::netlink::{Netlink, VethPair};
use crate::testing::root_or_skip;

const ADDRESSES: [&str; 2] = ["192.0.2.100", "2001:db8::100"];

/// A bridge in a namespace of its own, and the machines that are plugged into it.
struct Wire {
    dir: tempfile::TempDir,
    made: Vec<PathBuf>,
}

impl Wire {
    fn new() -> Self {
        let mut wire = Self {
            dir: tempfile::Builder::new().prefix("kn-an-").tempdir().unwrap(),
            made: Vec::new(),
        };
        let bridge = wire.netns("bridge");
        ip(&bridge, "link add br0 type bridge");
        ip(&bridge, "link set br0 up");
        wire
    }

    fn netns(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        create_pinned(Namespace::Net, &path).unwrap();
        self.made.push(path.clone());
        path
    }

    /// A machine with the addresses 192.0.2.`n` and 2001:db8::`n`, and a hardware address that ends in `n`.
    fn plug(&mut self, n: u8) -> PathBuf {
        let (machine, bridge) = (self.netns(&format!("machine-{n}")), self.made[0].clone());
        let netns = machine.clone();
        let runtime = runtime();
        within(Namespace::Net, &bridge, move || {
            runtime.block_on(async move {
                let file = std::fs::File::open(&netns).unwrap();
                let pair = VethPair {
                    host_name: &format!("port{n}"),
                    host_mac: [2, 0, 0, 0, 1, n],
                    pod_name: "up0",
                    pod_mac: mac(n),
                    pod_netns: file.as_fd(),
                    mtu: 1500,
                };
                Netlink::open().unwrap().add_veth(pair).await.unwrap();
            });
        })
        .unwrap();
        ip(&bridge, &format!("link set port{n} master br0 up"));
        ip(&machine, "link set lo up");
        // As on a node: what is for nobody here is forwarded.
        forward(&machine);
        ip(&machine, &format!("address add 192.0.2.{n}/24 dev up0"));
        ip(
            &machine,
            &format!("address add 2001:db8::{n:x}/64 dev up0 nodad"),
        );
        ip(&machine, "link set up0 up");
        machine
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = remove_pinned(Namespace::Net, path);
        }
    }
}

fn mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0, n]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn ip(netns: &Path, arguments: &str) -> String {
    let words: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let output = within(Namespace::Net, netns, move || {
        Command::new("ip").args(words).output().unwrap()
    })
    .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn forward(netns: &Path) {
    within(Namespace::Net, netns, || {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
        }
    })
    .unwrap();
}

/// Where the machine believes the address to be.
fn neighbour(machine: &Path, address: &str) -> Option<String> {
    let line = ip(machine, &format!("neighbour show {address}"));
    let mut words = line.split_whitespace();
    words.find(|word| *word == "lladdr")?;
    words.next().map(str::to_owned)
}

/// Sends a datagram to the address, so that the kernel has to ask where it is.
fn ask(machine: &Path, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    within(Namespace::Net, machine, move || {
        let any: IpAddr = match address {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0_u16; 8].into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        // What is not there refuses it sooner or later.
        let _ = socket.send_to(b"?", (address, 9));
    })
    .unwrap();
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The nodes' Leases.
type Leases = Arc<Mutex<BTreeMap<Name, Sign>>>;

/// A node that takes part, until it is dropped, which kills it: it says nothing more to anybody.
struct Node {
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn start(netns: &Path, name: &str, leases: Leases) -> Self {
        let (kill, killed) = oneshot::channel();
        let (netns, name) = (netns.to_owned(), Name::from(name));
        let thread = std::thread::spawn(move || {
            within(Namespace::Net, &netns, move || {
                runtime().block_on(async {
                    tokio::select! {
                        () = take_part(name, leases) => {}
                        _ = killed => {}
                    }
                });
            })
            .unwrap();
        });
        Self {
            kill: Some(kill),
            thread: Some(thread),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the agent does, with Leases in memory.
async fn take_part(name: Name, leases: Leases) {
    let netlink = Netlink::open().unwrap();
    let networks = netlink.addresses().await.unwrap();
    let uplinks = uplinks(&netlink.links().await.unwrap(), &networks);
    let networks = uplinks[0].networks.clone();
    let mut election = Election::new(name.clone());
    let (mut speaker, mut claims) = Speaker::new();
    let addresses: BTreeMap<IpAddr, &Who> = ADDRESSES
        .iter()
        .map(|address| (address.parse().unwrap(), &Who::Any))
        .collect();
    let mut wrote: Option<Instant> = None;
    loop {
        for (node, sign) in leases.lock().unwrap().iter() {
            election.heard(node, sign.clone(), Instant::now());
        }
        while let Ok(claim) = claims.try_recv() {
            if election.disputed(claim.address, Instant::now()) == Dispute::Defend {
                speaker.defend(claim, Instant::now());
            }
        }
        let own = Own {
            networks: &networks,
            fit: true,
        };
        let decision = election.decide(&addresses, own, Instant::now());
        speaker.set(&uplinks, &decision.mine, Instant::now());
        if decision.pulse.fast && wrote.is_none_or(|at| at.elapsed() >= BEAT) {
            wrote = Some(Instant::now());
            let sign = Sign {
                renewed: Some(Timestamp::now()),
                networks: decision.pulse.networks,
            };
            leases.lock().unwrap().insert(name.clone(), sign);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn one_node_answers_and_when_it_dies_the_client_hears_of_the_other() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    let mut wire = Wire::new();
    let [one, two, client] = [1, 2, 9].map(|n| wire.plug(n));
    let leases = Leases::default();
    let mut nodes = BTreeMap::from([
        (1, Node::start(&one, "worker-1", leases.clone())),
        (2, Node::start(&two, "worker-2", leases)),
    ]);
    let shown = |n: u8| format!("02:00:00:00:00:{n:02x}");
    for address in ADDRESSES {
        until("somebody answers", || {
            ask(&client, address);
            neighbour(&client, address).is_some()
        });
        // Each has had its time to stand, and to be asked and answer wrongly.
        std::thread::sleep(Duration::from_secs(3));
        ip(&client, "neighbour flush dev up0");
        until("somebody answers again", || {
            ask(&client, address);
            neighbour(&client, address).is_some()
        });
    }
    // A neighbour that was not heard of for a while is asked again, and directly.
    for address in ADDRESSES {
        until("somebody answers", || {
            ask(&client, address);
            neighbour(&client, address).is_some()
        });
        let mac = neighbour(&client, address).unwrap();
        ip(
            &client,
            &format!("neighbour replace {address} lladdr {mac} dev up0 nud probe"),
        );
        until("the neighbour answers for itself", || {
            let line = ip(&client, &format!("neighbour show {address}"));
            line.contains("REACHABLE")
        });
    }
    let announcer = |address: &str| {
        let found = neighbour(&client, address).unwrap();
        [1, 2].into_iter().find(|n| shown(*n) == found).unwrap()
    };
    // The second address first: its node may be the other one's, too.
    let dead = announcer(ADDRESSES[1]);
    let other = 3 - dead;
    ask(&client, ADDRESSES[0]);
    drop(nodes.remove(&dead));
    let died = Instant::now();
    until("the client has heard of the other node", || {
        neighbour(&client, ADDRESSES[1]) == Some(shown(other))
    });
    println!("replaced after {:?}", died.elapsed());
    until("the other node has both", || {
        ADDRESSES
            .iter()
            .all(|address| neighbour(&client, address) == Some(shown(other)))
    });
    for address in ADDRESSES {
        ip(&client, "neighbour flush dev up0");
        until("the other node answers", || {
            ask(&client, address);
            neighbour(&client, address) == Some(shown(other))
        });
    }
    drop(nodes);
    ip(&client, "neighbour flush dev up0");
    ask(&client, ADDRESSES[0]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(neighbour(&client, ADDRESSES[0]), None, "nobody is left");
}
