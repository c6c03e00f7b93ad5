//! What is tried of network policy: two pods and a machine outside, with a policy that comes, changes and goes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use agent_ebpf::abi::{DropReason, LinkIndex, TCP};
use ipnet::IpNet;
use kube::core::{Expression, Selector};

use super::checks::expect;
use super::lab::{Lab, Space, pod};
use super::packets::network;
use super::place::Place;
use super::{Outcome, PREFIX, Refusal};
use crate::cluster::{Name, ObjectKey};
use crate::dataplane::{Dataplane, PodLinks, PolicyMaps, PolicyTables as _};
use crate::network::LinkGuard as _;
use crate::policy::compile::{Local, LocalLink, compile};
use crate::policy::state::PolicyState;
use crate::policy::types::{Block, Labels, Peer, Pod, PodPeer, Policy, Ports, Rule, Which};
use crate::policy::view::View;

/// What should come takes less, what should not is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);
/// A range whose ends are no powers of two.
const PORTS: (u16, u16) = (8001, 8006);

/// One machine of the test: its link at the node, its address and the node's beside it.
struct Machine {
    link: &'static str,
    addresses: [(&'static str, &'static str); 2],
}

const WEB: Machine = Machine {
    link: "kn-st-web",
    addresses: [
        ("198.18.77.2/30", "198.18.77.1/30"),
        ("2001:db8:77a::2/64", "2001:db8:77a::1/64"),
    ],
};
const FRIEND: Machine = Machine {
    link: "kn-st-friend",
    addresses: [
        ("198.18.77.6/30", "198.18.77.5/30"),
        ("2001:db8:77b::2/64", "2001:db8:77b::1/64"),
    ],
};
const OUTSIDE: Machine = Machine {
    link: "kn-st-outside",
    addresses: [
        ("198.18.77.10/30", "198.18.77.9/30"),
        ("2001:db8:77c::2/64", "2001:db8:77c::1/64"),
    ],
};

impl Machine {
    fn own(&self, family: usize) -> IpAddr {
        network(self.addresses[family].0).addr()
    }

    fn nodes(&self, family: usize) -> IpAddr {
        network(self.addresses[family].1).addr()
    }

    /// Its link, and its network. Up when `guard` has seen the link.
    fn connect(
        &self,
        lab: &mut Lab,
        families: &[usize],
        guard: impl FnOnce(u32) -> Result<(), Refusal>,
    ) -> Result<(Space, u32), Refusal> {
        let addresses: Vec<(IpNet, IpNet)> = families
            .iter()
            .map(|family| self.addresses[*family])
            .map(|(own, node)| (network(own), network(node)))
            .collect();
        pod(lab, self.link, &addresses, guard)
    }
}

/// A pod that a policy is about, one that it names, and whoever else there is.
pub(super) fn policies(_: &Place, dataplane: &Dataplane) -> Outcome {
    let families: Vec<usize> = [0, 1].into_iter().filter(|it| has_family(*it)).collect();
    forward(&families)?;
    let mut lab = Lab::new(&format!("{PREFIX}policy-"));
    let links = PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
    let mut maps = PolicyMaps::open(&dataplane.dir)?;
    let mut state = PolicyState::adopt(maps.dump()?);
    let mut local = Local {
        node: [&WEB, &FRIEND, &OUTSIDE]
            .iter()
            .flat_map(|it| [it.nodes(0), it.nodes(1)])
            .collect(),
        ..Local::default()
    };
    let mut spaces = BTreeMap::new();
    for pod in [&WEB, &FRIEND] {
        let addresses = vec![pod.own(0), pod.own(1)];
        let (space, index) = pod.connect(&mut lab, &families, |index| {
            Ok(links.guard(index, pod.link, &addresses)?)
        })?;
        let index = LinkIndex(index);
        local
            .links
            .insert(pod.link.into(), LocalLink { index, addresses });
        spaces.insert(pod.link, space);
    }
    let (outside, _) = OUTSIDE.connect(&mut lab, &families, |_| Ok(()))?;
    let (web, friend) = (&spaces[WEB.link], &spaces[FRIEND.link]);
    let mut enforce = |policies: &[Policy]| -> Result<(), Refusal> {
        let wanted = compile(&view(policies), &local);
        let ops = state.plan(&wanted);
        for op in ops {
            maps.apply(&op)?;
            state.done(&op);
        }
        for op in state.collect(|link| wanted.pods.contains_key(link)) {
            maps.apply(&op)?;
            state.done(&op);
        }
        Ok(())
    };
    let refused = |reason| -> Result<u64, Refusal> { Ok(dataplane.maps.drops()?[&reason]) };
    for family in &families {
        let family = *family;
        let at = |machine: &Machine, port| SocketAddr::new(machine.own(family), port);
        let (inside, beyond) = (at(&WEB, PORTS.1), at(&WEB, PORTS.1 + 1));
        let _served = [listen(web, inside)?, listen(web, beyond)?];
        let elsewhere = at(&OUTSIDE, PORTS.0);
        let _outside = listen(&outside, elsewhere)?;

        enforce(&[])?;
        reaches("without a policy", &outside, inside, true)?;
        reaches("without a policy", friend, beyond, true)?;

        enforce(&[default_deny()])?;
        let before = refused(DropReason::PolicyIngress)?;
        reaches("default deny", friend, inside, false)?;
        reaches("default deny", &outside, inside, false)?;
        expect(
            "counted",
            refused(DropReason::PolicyIngress)? > before,
            true,
        )?;
        let from_node = TcpStream::connect_timeout(&inside, PATIENCE).is_ok();
        expect("from the node", from_node, true)?;
        let before = refused(DropReason::PolicyEgress)?;
        reaches("default deny of egress", web, elsewhere, false)?;
        expect("counted", refused(DropReason::PolicyEgress)? > before, true)?;

        enforce(&[default_deny(), friends()])?;
        reaches("a friend", friend, inside, true)?;
        reaches("a friend beyond the ports", friend, beyond, false)?;
        reaches("a stranger", &outside, inside, false)?;
        reaches("an address that may be called", web, elsewhere, true)?;
        expect(
            "answers to a datagram",
            asks(web, &outside, elsewhere)?,
            true,
        )?;

        let mut connection = connected(friend, inside, PATIENCE)?;
        echo(&mut connection)?;
        enforce(&[default_deny()])?;
        reaches("a new connection after that", friend, inside, false)?;
        echo(&mut connection)?;
        enforce(&[])?;
        reaches("after all policies", &outside, beyond, true)?;
    }
    Ok(format!("{} of 2 families, TCP and UDP", families.len()))
}

pub(super) fn has_family(family: usize) -> bool {
    let any = match family {
        0 => SocketAddr::from(([0, 0, 0, 0], 0)),
        _ => SocketAddr::from(([0; 8], 0)),
    };
    UdpSocket::bind(any).is_ok()
}

/// Makes the node pass packets on, and check no source: the machines' networks are of the test's own.
pub(super) fn forward(families: &[usize]) -> io::Result<()> {
    let mut settings = vec!["net/ipv4/ip_forward"];
    if families.contains(&1) {
        settings.push("net/ipv6/conf/all/forwarding");
    }
    settings
        .iter()
        .try_for_each(|name| fs::write(format!("/proc/sys/{name}"), "1"))
}

fn view(policies: &[Policy]) -> View {
    let namespace: Name = "shop".into();
    let key = |name: &str| ObjectKey::new(namespace.clone(), name);
    let pod = |machine: &Machine, app: &str| Pod {
        labels: labels(app),
        ports: Arc::new([]),
        addresses: vec![machine.own(0), machine.own(1)],
        created: 0,
        link: Some(machine.link.into()),
    };
    let named = policies.iter().enumerate();
    View {
        policies: named
            .map(|(n, policy)| (key(&n.to_string()), Arc::new(policy.clone())))
            .collect(),
        namespaces: [(namespace.clone(), Labels::default())].into(),
        pods: [
            (key("web"), pod(&WEB, "web").into()),
            (key("friend"), pod(&FRIEND, "friend").into()),
        ]
        .into(),
        complete: true,
        ..View::default()
    }
}

fn labels(app: &str) -> Labels {
    Arc::new([("app".to_owned(), app.to_owned())].into())
}

fn app(name: &str) -> Selector {
    Expression::Equal("app".to_owned(), name.to_owned()).into()
}

/// Nothing to the web server and nothing from it.
fn default_deny() -> Policy {
    Policy {
        pods: app("web"),
        ingress: Some(vec![]),
        egress: Some(vec![]),
    }
}

/// Friends may call the web server on some ports, and it the machine outside.
fn friends() -> Policy {
    let block = |family: usize| {
        Peer::Block(Block {
            range: IpNet::from(OUTSIDE.own(family)),
            except: vec![],
        })
    };
    Policy {
        pods: app("web"),
        ingress: Some(vec![Rule {
            peers: Some(vec![Peer::Pods(PodPeer {
                namespace: "shop".into(),
                namespaces: None,
                pods: app("friend"),
            })]),
            ports: Some(vec![Ports {
                protocol: TCP,
                which: Which::Range(PORTS.0, PORTS.1),
            }]),
        }]),
        egress: Some(vec![Rule {
            peers: Some(vec![block(0), block(1)]),
            ports: None,
        }]),
    }
}

/// A server that answers with what it hears, until the value goes.
fn listen(space: &Space, address: SocketAddr) -> Result<Served, Refusal> {
    let listener = space.run(move || TcpListener::bind(address))??;
    let own = listener.try_clone()?;
    std::thread::spawn(move || {
        for stream in own.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    Ok(Served(listener))
}

struct Served(TcpListener);

impl Drop for Served {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = socket2::SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }
}

fn connected(space: &Space, to: SocketAddr, patience: Duration) -> Result<TcpStream, Refusal> {
    Ok(space.run(move || TcpStream::connect_timeout(&to, patience))??)
}

/// A connection is made, or not: policies drop what they refuse, so nothing comes back then.
fn reaches(what: &str, space: &Space, to: SocketAddr, expected: bool) -> Result<(), Refusal> {
    let patience = if expected { PATIENCE } else { QUIET };
    let found = match space.run(move || TcpStream::connect_timeout(&to, patience))? {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => false,
        Err(error) => return Err(Refusal::Failed(format!("{what}: {to}: {error}"))),
    };
    expect(&format!("{what}: {to} is reached"), found, expected)
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"k")?;
    stream.read_exact(&mut [0])
}

/// Whether a datagram of `space` is answered by the machine that has `to`.
fn asks(space: &Space, there: &Space, to: SocketAddr) -> Result<bool, Refusal> {
    let server = there.run(move || UdpSocket::bind(to))??;
    let client = space.run(move || {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0; 8].into(),
        };
        let client = UdpSocket::bind((any, 0))?;
        client.connect(to)?;
        client.send(b"?")?;
        io::Result::Ok(client)
    })??;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let (_, from) = server.recv_from(&mut [0; 8])?;
    server.send_to(b"!", from)?;
    Ok(client.recv(&mut [0; 8])? == 1)
}
