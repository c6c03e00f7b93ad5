//! What is tried of services from outside: a client and a far backend beside the node, each behind an uplink of its own, and
//! a backend in a pod.
//!
//! ```text
//! client ── kn-st-up ─┬─ node ─┬─ kn-st-far ── far backend, which knows no way to the client
//!                     │        └─ kn-st-lp ─── pod
//! ```

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::thread;
use std::time::Duration;

use agent_ebpf::abi::{
    Address, BackendEntry, BackendId, DropReason, LinkIndex, SHARE_ONE, Scope, ServiceEntry,
    ServiceKey, SlotKey, TCP, UDP, UplinkEntry,
};
use ipnet::IpNet;
use socket2::{Domain, Socket, Type};

use super::checks::expect;
use super::lab::{Lab, LabError, Space, configure};
use super::packets::network;
use super::place::Place;
use super::{Check, Outcome, PREFIX, Refusal, direct, judged, reached, two_links, xdp};
use crate::dataplane::{
    self, ABI_VERSION, Connections, Dataplane, MapOp, Maps, PodLinks, ServiceMaps as _, Uplink,
    Uplinks,
};
use crate::network::LinkGuard as _;

pub(super) const CLIENT_LINK: &str = "kn-st-up";
pub(super) const FAR_LINK: &str = "kn-st-far";
const POD_LINK: &str = "kn-st-lp";
/// What the other ends are called.
pub(super) const THERE: &str = "eth0";
/// Where backends listen, and where nobody does.
pub(super) const SERVED: u16 = 8080;
pub(super) const UNSERVED: u16 = 9;
/// Node ports: to the pod, to nobody at the pod, to no backend. None is one that sockets of this process are to find.
pub(super) const NODE_PORT: u16 = 30_090;
pub(super) const DEAF_NODE_PORT: u16 = 30_091;
const EMPTY_NODE_PORT: u16 = 30_092;
/// Ports of a load balancer's address: to the far backend, to nobody there, to no backend.
pub(super) const PORT: u16 = 80;
/// The same, whose backend's node answers itself.
pub(super) const DIRECT_PORT: u16 = 84;
pub(super) const DEAF_PORT: u16 = 81;
pub(super) const EMPTY_PORT: u16 = 82;
const PATIENCE: Duration = Duration::from_secs(5);
/// Less than the other links have, so that a sender has to be told. The far backend itself does not know, so what it
/// answers at once has to be little.
const FAR_MTU: u32 = 1300;
const FAR_ANSWERS: usize = 1000;

/// The addresses of one family. The node has the first of each network.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) node_at_client: &'static str,
    pub(super) client: &'static str,
    pub(super) node_at_far: &'static str,
    pub(super) far: &'static str,
    node_at_pod: &'static str,
    pub(super) pod: &'static str,
    /// One that the client has besides, to which the node has two ways.
    pub(super) roaming: &'static str,
    /// In the pods' range, of nobody.
    forged: &'static str,
    /// Where client and far backend meet without the node.
    pub(super) client_at_far: &'static str,
    pub(super) far_at_client: &'static str,
    /// Which no machine has.
    pub(super) balancer: IpAddr,
    everything: &'static str,
    any: IpAddr,
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        name: "outside over IPv4",
        node_at_client: "198.51.100.1/24",
        client: "198.51.100.2/24",
        node_at_far: "203.0.113.1/24",
        far: "203.0.113.2/24",
        node_at_pod: "192.0.2.129/25",
        pod: "192.0.2.130/25",
        roaming: "192.0.2.65/32",
        forged: "192.0.2.200/32",
        client_at_far: "192.0.2.1/26",
        far_at_client: "192.0.2.2/26",
        balancer: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)),
        everything: "0.0.0.0/0",
        any: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    },
    Family {
        name: "outside over IPv6",
        node_at_client: "2001:db8:10::1/64",
        client: "2001:db8:10::2/64",
        node_at_far: "2001:db8:20::1/64",
        far: "2001:db8:20::2/64",
        node_at_pod: "2001:db8:30::1/64",
        pod: "2001:db8:30::2/64",
        roaming: "2001:db8:60::1/128",
        forged: "2001:db8:30::200/128",
        client_at_far: "2001:db8:50::1/64",
        far_at_client: "2001:db8:50::2/64",
        balancer: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x40, 0, 0, 0, 0, 1)),
        everything: "::/0",
        any: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    },
];

impl Family {
    /// Whether this kernel has it.
    pub(super) fn is_known(&self) -> bool {
        let at = (network(self.node_at_client).addr(), 0);
        !matches!(UdpSocket::bind(at), Err(error) if error.kind() != ErrorKind::AddrInUse)
    }
}

/// The machines around the node.
pub(super) struct Neighbours {
    pub(super) client: Space,
    pub(super) far: Space,
    pod: Space,
    /// Indices of the node's ends.
    pub(super) links: [u32; 3],
    /// Hardware addresses of the uplinks, once packets are sent on by XDP there.
    pub(super) xdp: Cell<[Option<[u8; 6]>; 2]>,
    /// They go with it.
    _lab: Lab,
}

/// An open connection, and to whom.
pub(super) type Stream = (&'static str, TcpStream);

/// One check for each family, and those of what is open then.
pub(super) fn checks(place: &Place, dataplane: &mut Dataplane) -> Vec<Check> {
    let neighbours = match neighbours() {
        Ok(neighbours) => neighbours,
        Err(error) => {
            let why = Err(Refusal::Skipped(format!("no neighbours: {error}")));
            return vec![judged("outside", why)];
        }
    };
    let served = serve(dataplane, &neighbours);
    if served.is_err() {
        return vec![judged("outside", served)];
    }
    let mut streams = Vec::new();
    let families = FAMILIES.iter().map(|family| {
        judged(
            family.name,
            outside(dataplane, &neighbours, family, &mut streams),
        )
    });
    let mut checks: Vec<Check> = families.collect();
    let reached = reached::check(place, &neighbours, &mut streams);
    checks.push(judged("outside to a pod's own address", reached));
    let direct = direct::check(dataplane, &neighbours);
    checks.push(judged("direct server return", direct));
    let links = two_links::check(&neighbours, &mut streams);
    checks.push(judged("outside by either of two links", links));
    checks.push(judged(
        "outside by XDP",
        xdp::check(dataplane, &neighbours, &mut streams),
    ));
    let lived = upgraded(place, &neighbours, streams);
    checks.push(judged("outside through an upgrade", lived));
    checks.push(judged("translated connections", swept(place)));
    checks
}

fn neighbours() -> Result<Neighbours, LabError> {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1")?;
    }
    let mut lab = Lab::new(&format!("{PREFIX}outside-"));
    let spaces = [lab.space("client")?, lab.space("far")?, lab.space("pod")?];
    let mut links = [0; 3];
    let names = [CLIENT_LINK, FAR_LINK, POD_LINK];
    for (n, space) in spaces.iter().enumerate() {
        let (name, there) = (names[n], space.clone());
        let own: Vec<IpNet> = FAMILIES
            .iter()
            .map(|it| [it.node_at_client, it.node_at_far, it.node_at_pod][n])
            .map(network)
            .collect();
        let nodes = own.clone();
        links[n] = configure(async |net| {
            net.veth(name, &there, THERE).await?;
            net.up(name).await?;
            for address in nodes {
                net.address(name, address).await?;
            }
            net.index(name).await
        })?;
        let theirs: Vec<(IpNet, IpNet)> = FAMILIES
            .iter()
            .map(|it| ([it.client, it.far, it.pod][n], it.everything))
            .map(|(address, everything)| (network(address), network(everything)))
            .collect();
        space.configure(async move |net| {
            net.up(THERE).await?;
            for ((address, everything), router) in theirs.into_iter().zip(own) {
                net.address(THERE, address).await?;
                // The far backend answers the node only.
                if n != 1 {
                    net.route(everything, THERE, Some(router.addr())).await?;
                }
            }
            Ok(())
        })?;
    }
    configure(async |net| net.mtu(FAR_LINK, FAR_MTU).await)?;
    let [client, far, pod] = spaces;
    Ok(Neighbours {
        client,
        far,
        pod,
        links,
        xdp: Cell::default(),
        _lab: lab,
    })
}

/// The tables, the rows of the links, and the programs.
fn serve(dataplane: &mut Dataplane, neighbours: &Neighbours) -> Outcome {
    let mut id = 1000;
    for family in &FAMILIES {
        let [far, pod] = [family.far, family.pod].map(|it| network(it).addr());
        for protocol in [TCP, UDP] {
            let services = [
                (family.any, NODE_PORT, Some((pod, SERVED))),
                (family.any, DEAF_NODE_PORT, Some((pod, UNSERVED))),
                (family.any, EMPTY_NODE_PORT, None),
                (family.balancer, PORT, Some((far, SERVED))),
                (family.balancer, DEAF_PORT, Some((far, UNSERVED))),
                (family.balancer, EMPTY_PORT, None),
            ];
            for (address, port, backend) in services {
                id += 1;
                let at = (address, port, protocol);
                let ops = rows(id, at, Scope::EXTERNAL, backend, 0);
                dataplane.maps.apply_all(&ops)?;
            }
        }
    }
    let own = FAMILIES
        .iter()
        .map(|it| network(it.node_at_client).addr().into());
    let own: BTreeSet<Address> = own.collect();
    dataplane.maps.set_node_addresses(&own)?;
    let ranges = FAMILIES.each_ref().map(|it| network(it.pod).trunc());
    dataplane.maps.set_pod_ranges(&ranges)?;
    dataplane.maps.set_node_ports(NODE_PORT, EMPTY_NODE_PORT)?;
    attach(dataplane, neighbours)?;
    Ok("attached".to_owned())
}

pub(super) fn rows(
    id: u32,
    (address, port, protocol): (IpAddr, u16, u8),
    scope: Scope,
    backend: Option<(IpAddr, u16)>,
    flags: u32,
) -> Vec<MapOp> {
    let key = ServiceKey {
        address: address.into(),
        port: port.to_be_bytes(),
        protocol,
        scope,
    };
    let ready = u32::from(backend.is_some());
    let entry = ServiceEntry {
        service_id: id,
        generation: 1,
        local: 0,
        zone: 0,
        ready,
        terminating: 0,
        flags,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    };
    let mut ops = Vec::new();
    if let Some((address, port)) = backend {
        let row = BackendEntry {
            address: address.into(),
            port: port.to_be_bytes(),
            protocol,
            pad: 0,
        };
        let slot = SlotKey {
            service_id: id,
            generation: 1,
            slot: 0,
        };
        ops.push(MapOp::PutBackend(BackendId(id), row));
        ops.push(MapOp::PutSlot(slot, BackendId(id)));
    }
    ops.push(MapOp::PutService(key, entry));
    ops
}

pub(super) fn attach(dataplane: &Dataplane, neighbours: &Neighbours) -> Result<(), Refusal> {
    let mut uplinks = Uplinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
    uplinks.apply(&uplinks_of(neighbours))?;
    let addresses: Vec<IpAddr> = FAMILIES.iter().map(|it| network(it.pod).addr()).collect();
    let pods = PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
    let [.., pod] = neighbours.links;
    Ok(pods.guard(pod, POD_LINK, &addresses)?)
}

/// The uplinks.
pub(super) fn uplinks_of(neighbours: &Neighbours) -> BTreeMap<LinkIndex, Uplink> {
    let [client, far, _] = neighbours.links;
    let own = |of: fn(&Family) -> &'static str| {
        let [v4, v6] = [0, 1].map(|n| network(of(&FAMILIES[n])).addr().into());
        UplinkEntry { ipv4: v4, ipv6: v6 }
    };
    let names = [CLIENT_LINK, FAR_LINK];
    let owns = [own(|it| it.node_at_client), own(|it| it.node_at_far)];
    let uplink = |n: usize| Uplink {
        name: names[n].to_owned(),
        own: owns[n],
        xdp: neighbours.xdp.get()[n],
    };
    [(LinkIndex(client), uplink(0)), (LinkIndex(far), uplink(1))].into()
}

fn outside(
    dataplane: &Dataplane,
    neighbours: &Neighbours,
    family: &Family,
    streams: &mut Vec<Stream>,
) -> Outcome {
    let addr = |text| network(text).addr();
    let (client, node) = (addr(family.client), addr(family.node_at_client));
    let at_node = |port| SocketAddr::new(node, port);
    let at_balancer = |port| SocketAddr::new(family.balancer, port);
    if !family.is_known() {
        return Err(Refusal::Skipped(
            "this kernel has not the family".to_owned(),
        ));
    }
    mirrors(&neighbours.pod, (addr(family.pod), SERVED), usize::MAX)?;
    mirrors(&neighbours.far, (addr(family.far), SERVED), FAR_ANSWERS)?;
    let from = &neighbours.client;

    let (stream, seen) = step("TCP to the pod", dial(from, at_node(NODE_PORT)))?;
    expect("whom the pod sees", seen, stream.local_addr()?)?;
    expect("of TCP", seen.ip(), client)?;
    let seen = step("UDP to the pod", ask(from, at_node(NODE_PORT), 1))?;
    expect("whom the pod sees of UDP", seen.ip(), client)?;
    let (far_stream, seen) = step("TCP to the far backend", dial(from, at_balancer(PORT)))?;
    let node_at_far = addr(family.node_at_far);
    expect("whom the far backend sees", seen.ip(), node_at_far)?;
    let seen = step("UDP to the far backend", ask(from, at_balancer(PORT), 1))?;
    expect("of UDP", seen.ip(), node_at_far)?;

    // More than a packet: fragments of UDP, and of TCP more than the far link takes at once.
    step("fragments to the pod", ask(from, at_node(NODE_PORT), 4000))?;
    let mut fragments = ask(from, at_balancer(PORT), 4000);
    if matches!(&fragments, Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE)) {
        // The path's MTU was told, which IPv6 lets the sender know.
        fragments = ask(from, at_balancer(PORT), 4000);
    }
    step("fragments to the far backend", fragments)?;
    step("much to the far backend", bulk(from, at_balancer(PORT)))?;
    step("much to the pod", bulk(from, at_node(NODE_PORT)))?;

    for (what, dialled) in [
        (
            "a port of the pod's where nobody listens",
            at_node(DEAF_NODE_PORT),
        ),
        (
            "a port of the far backend's where nobody listens",
            at_balancer(DEAF_PORT),
        ),
        ("a node port without backend", at_node(EMPTY_NODE_PORT)),
        ("an address without backend", at_balancer(EMPTY_PORT)),
    ] {
        let refused = dial(from, dialled).err().map(|error| error.kind());
        expect(what, refused, Some(ErrorKind::ConnectionRefused))?;
        let refused = ask(from, dialled, 1).err().map(|error| error.kind());
        expect(what, refused, Some(ErrorKind::ConnectionRefused))?;
    }

    // A pod speaks to the world with the node's address.
    let to_far = SocketAddr::new(addr(family.far), SERVED);
    let dialled = dial(&neighbours.pod, to_far);
    let (pods_stream, seen) = step("TCP from the pod to the far backend", dialled)?;
    expect("whom it sees", seen.ip(), node_at_far)?;
    let asked = ask(&neighbours.pod, to_far, 1);
    let seen = step("UDP from the pod to the far backend", asked)?;
    expect("whom it sees of UDP", seen.ip(), node_at_far)?;

    let reason = DropReason::ForeignPod;
    let before = dataplane.maps.drops()?[&reason];
    forge(neighbours, family)?;
    let counted = dataplane.maps.drops()?[&reason] > before;
    expect("a forged pod's packet is dropped", counted, true)?;

    streams.extend([
        ("the pod", stream),
        ("the far backend", far_stream),
        ("the far backend to the pod", pods_stream),
    ]);
    Ok("node port to a pod, load balancer's address to another node; TCP, UDP, fragments, errors; masquerade".to_owned())
}

/// The client sends as if it were another pod of the node.
fn forge(neighbours: &Neighbours, family: &Family) -> Result<(), Refusal> {
    let forged = network(family.forged);
    let pod = SocketAddr::new(network(family.pod).addr(), SERVED);
    let client = &neighbours.client;
    client.configure(async move |net| net.address("lo", forged).await)?;
    let sent = client.run(move || {
        let socket = UdpSocket::bind((forged.addr(), 0))?;
        socket.send_to(b"?", pod).map(drop)
    })?;
    step("a forged datagram", sent)
}

/// A restart and an upgrade of the agent, while connections are open.
fn upgraded(place: &Place, neighbours: &Neighbours, mut streams: Vec<Stream>) -> Outcome {
    let again = dataplane::start(&place.config, &place.probe)?;
    attach(&again, neighbours)?;
    go_on("after a restart", &mut streams)?;
    let directory = |suffix: &str| {
        let name = format!("v{ABI_VERSION}{suffix}");
        place.config.bpf_dir.join(name)
    };
    fs::rename(directory(""), directory("-outside"))?;
    let mut again = dataplane::start(&place.config, &place.probe)?;
    go_on("while another version serves", &mut streams)?;
    if let Some(take_over) = &mut again.take_over {
        take_over.run()?;
    }
    go_on("after an upgrade", &mut streams)?;
    attach(&again, neighbours)?;
    go_on("after that", &mut streams)?;
    Ok(format!("{} that were open go on", streams.len()))
}

/// Whether connections that are open still are.
fn go_on(when: &str, streams: &mut [Stream]) -> Result<(), Refusal> {
    for (what, stream) in streams {
        let mut answer = [0; 1];
        let went = stream
            .write_all(b"?")
            .and_then(|()| stream.read_exact(&mut answer));
        step(&format!("{what} {when}"), went)?;
        expect(what, answer, *b"?")?;
    }
    Ok(())
}

/// The connections of the checks before are listed, and go when their time has come.
fn swept(place: &Place) -> Outcome {
    let dir = place.config.bpf_dir.join(format!("v{ABI_VERSION}"));
    let mut connections = Connections::new(Maps::open(&dir)?);
    let now = dataplane::monotonic_ns();
    let today = connections.sweep(now)?;
    let tomorrow = connections.sweep(now + 25 * 3600 * 1_000_000_000)?;
    expect("rows before", today.fill.rows > 0, true)?;
    expect(
        "those removed",
        tomorrow.removed + today.removed,
        today.fill.rows,
    )?;
    expect("those left", connections.sweep(now)?.fill.rows, 0)?;
    Ok(format!(
        "{} rows of them, which go in time",
        today.fill.rows
    ))
}

/// Says of an error what was tried.
pub(super) fn step<T>(what: &str, result: io::Result<T>) -> Result<T, Refusal> {
    result.map_err(|error| Refusal::Failed(format!("{what}: {error}")))
}

/// Servers in a namespace that tell who asks, and give back what is sent, as far as it is not more than `most` bytes at
/// once. They serve until the process ends.
pub(super) fn mirrors(space: &Space, at: (IpAddr, u16), most: usize) -> Result<(), Refusal> {
    space.run(move || -> io::Result<()> {
        let listener = TcpListener::bind(at)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || mirror(stream, most));
            }
        });
        let socket = UdpSocket::bind(at)?;
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let text = from.to_string();
                let length = length.min(most).max(text.len());
                buffer[..length].fill(b' ');
                buffer[..text.len()].copy_from_slice(text.as_bytes());
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        Ok(())
    })??;
    Ok(())
}

fn mirror(mut stream: TcpStream, most: usize) -> io::Result<()> {
    let text = format!("{}\n", stream.peer_addr()?);
    stream.write_all(text.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length if length <= most => stream.write_all(&buffer[..length])?,
            _ => {}
        }
    }
}

/// Connects from a namespace; gives the connection and whom the server saw.
pub(super) fn dial(from: &Space, to: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    dial_as(from, any_of(to), to)
}

/// The same with an address of its own.
pub(super) fn dial_as(
    from: &Space,
    own: IpAddr,
    to: SocketAddr,
) -> io::Result<(TcpStream, SocketAddr)> {
    let connected = from.run(move || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(own, 0).into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(socket.into())
    });
    let mut stream = connected.map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let seen = String::from_utf8_lossy(&line).parse();
    Ok((stream, seen.map_err(io::Error::other)?))
}

/// Sends a datagram of at least `length` bytes; gives whom the server saw.
pub(super) fn ask(from: &Space, to: SocketAddr, length: usize) -> io::Result<SocketAddr> {
    ask_as(from, any_of(to), to, length)
}

fn any_of(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The same with an address of its own.
pub(super) fn ask_as(
    from: &Space,
    own: IpAddr,
    to: SocketAddr,
    length: usize,
) -> io::Result<SocketAddr> {
    let asked = from.run(move || -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(&vec![b' '; length])?;
        let mut answer = [0; 8192];
        let length = socket.recv(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]);
        text.trim().parse().map_err(io::Error::other)
    });
    asked.map_err(io::Error::other)?
}

/// Sends more than fits into a few packets, and waits until the server has taken all of it.
pub(super) fn bulk(from: &Space, to: SocketAddr) -> io::Result<()> {
    bulk_as(from, any_of(to), to)
}

/// The same with an address of its own.
pub(super) fn bulk_as(from: &Space, own: IpAddr, to: SocketAddr) -> io::Result<()> {
    let (mut stream, _) = dial_as(from, own, to)?;
    let mut writing = stream.try_clone()?;
    let writer = thread::spawn(move || {
        writing.write_all(&vec![7; 300_000])?;
        writing.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::sink())?;
    writer
        .join()
        .map_err(|_| io::Error::other("the writer panicked"))?
}
