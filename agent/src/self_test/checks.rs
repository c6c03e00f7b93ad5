//! What is tried: sockets dial service addresses that nobody has, and reach echoes on the loopback.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use agent_ebpf::abi::{
    BackendEntry, BackendId, SHARE_ONE, Scope, ServiceEntry, ServiceKey, SlotKey, TCP, UDP,
};

use super::place::Place;
use super::{
    Check, Outcome, Refusal, fast_path, judged, node_ports, outside, packets, policy, unseen,
};
use crate::dataplane::{self, ABI_VERSION, Dataplane, MapOp, ServiceMaps as _, close_sockets};

/// An address for documentation (RFC 5737): no machine has it.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same for IPv6 (RFC 3849).
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const PORT: u16 = 80;
/// A service without backends.
const EMPTY_PORT: u16 = 81;
/// Nothing here takes longer, unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const QUESTION: &[u8] = b"kernelet";

/// How a socket names the service.
#[derive(Clone, Copy)]
enum Form {
    V4,
    /// An IPv6 socket that speaks to IPv4.
    Mapped,
    V6,
}

impl Form {
    fn dialled(self, port: u16) -> SocketAddr {
        match self {
            Form::V4 => (SERVICE_V4, port).into(),
            Form::Mapped => (SERVICE_V4.to_ipv6_mapped(), port).into(),
            Form::V6 => (SERVICE_V6, port).into(),
        }
    }

    /// A kernel may have no IPv6.
    fn is_there(self) -> bool {
        UdpSocket::bind(self.any()).is_ok()
    }

    fn any(self) -> SocketAddr {
        match self {
            Form::V4 => ([0, 0, 0, 0], 0).into(),
            Form::Mapped | Form::V6 => ([0; 8], 0).into(),
        }
    }
}

const TCP_CHECKS: [(&str, Form); 3] = [
    ("TCP over IPv4", Form::V4),
    ("TCP over IPv4-mapped IPv6", Form::Mapped),
    ("TCP over IPv6", Form::V6),
];
const CONNECTED_UDP_CHECKS: [(&str, Form); 3] = [
    ("connected UDP over IPv4", Form::V4),
    ("connected UDP over IPv4-mapped IPv6", Form::Mapped),
    ("connected UDP over IPv6", Form::V6),
];
const UNCONNECTED_UDP_CHECKS: [(&str, Form); 3] = [
    ("unconnected UDP over IPv4", Form::V4),
    ("unconnected UDP over IPv4-mapped IPv6", Form::Mapped),
    ("unconnected UDP over IPv6", Form::V6),
];

/// Runs every check. Without the programs there is nothing else to try.
pub(super) fn run(place: &Place) -> Vec<Check> {
    let mut dataplane = match dataplane::start(&place.config, &place.probe) {
        Ok(dataplane) => dataplane,
        Err(error) => return vec![judged("programs", Err(error.into()))],
    };
    let passed = format!(
        "verified, and attached to {}",
        place.config.cgroup.display()
    );
    let mut checks = vec![judged("programs", Ok(passed))];
    let tables = fill(&mut dataplane);
    let complete = tables.is_ok();
    checks.push(judged("tables", tables));
    if !complete {
        return checks;
    }
    type Try = fn(Form) -> Outcome;
    let kinds: [(_, Try); 3] = [
        (TCP_CHECKS, tcp),
        (CONNECTED_UDP_CHECKS, connected_udp),
        (UNCONNECTED_UDP_CHECKS, unconnected_udp),
    ];
    for (forms, check) in kinds {
        for (name, form) in forms {
            let outcome = match form.is_there() {
                true => check(form),
                false => Err(Refusal::Skipped("this kernel has no IPv6".to_owned())),
            };
            checks.push(judged(name, outcome));
        }
    }
    checks.push(judged("no backend", no_backend(place.probe.set_retval)));
    checks.push(judged("other addresses", other_addresses()));
    checks.push(judged(
        "node ports",
        node_ports::node_ports(place, &mut dataplane),
    ));
    checks.push(judged("counters", counters(&dataplane)));
    checks.push(judged("closing sockets", closing(place, &dataplane)));
    checks.push(judged("pod links", packets::pod_links(place, &dataplane)));
    checks.push(judged(
        "pod fast path",
        fast_path::between_pods(place, &dataplane),
    ));
    checks.push(judged(
        "network policies",
        policy::policies(place, &dataplane),
    ));
    checks.push(judged(
        "services at a pod's link",
        unseen::services(place, &mut dataplane),
    ));
    // It ends with an upgrade to other maps, which this dataplane does not know.
    checks.extend(outside::checks(place, &mut dataplane));
    checks.push(judged("adoption", adoption(place)));
    checks.push(judged("upgrade", upgrade(place)));
    checks
}

/// In each family and protocol a service with an echo behind it, and one without backends.
fn fill(dataplane: &mut Dataplane) -> Outcome {
    let mut id = 0;
    let loopbacks: [(IpAddr, IpAddr); 2] = [
        (SERVICE_V4.into(), Ipv4Addr::LOCALHOST.into()),
        (SERVICE_V6.into(), Ipv6Addr::LOCALHOST.into()),
    ];
    for (service, loopback) in loopbacks {
        if loopback.is_ipv6() && !Form::V6.is_there() {
            continue;
        }
        for (protocol, backend) in [(TCP, tcp_echo(loopback)?), (UDP, udp_echo(loopback)?)] {
            id += 1;
            dataplane
                .maps
                .apply_all(&tables(id, service, protocol, backend))?;
        }
    }
    Ok(format!("{id} services written"))
}

fn tables(id: u32, service: IpAddr, protocol: u8, backend: SocketAddr) -> [MapOp; 4] {
    let entry = ServiceEntry {
        service_id: id,
        generation: 1,
        local: 1,
        zone: 0,
        ready: 1,
        terminating: 0,
        flags: 0,
        affinity_timeout_s: 0,
        local_share: SHARE_ONE,
    };
    let empty = ServiceEntry {
        service_id: id + 100,
        local: 0,
        ready: 0,
        ..entry
    };
    let slot = SlotKey {
        service_id: id,
        generation: 1,
        slot: 0,
    };
    let row = BackendEntry {
        address: backend.ip().into(),
        port: backend.port().to_be_bytes(),
        protocol,
        pad: 0,
    };
    let key = |port: u16| ServiceKey {
        address: service.into(),
        port: port.to_be_bytes(),
        protocol,
        scope: Scope::CLUSTER,
    };
    [
        MapOp::PutBackend(BackendId(id), row),
        MapOp::PutSlot(slot, BackendId(id)),
        MapOp::PutService(key(PORT), entry),
        MapOp::PutService(key(EMPTY_PORT), empty),
    ]
}

fn tcp(form: Form) -> Outcome {
    let dialled = form.dialled(PORT);
    let mut stream = TcpStream::connect_timeout(&dialled, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    expect("getpeername", stream.peer_addr()?, dialled)?;
    stream.write_all(QUESTION)?;
    let mut answer = [0; QUESTION.len()];
    stream.read_exact(&mut answer)?;
    expect("the echo", &answer[..], QUESTION)?;
    Ok(format!("{dialled} answered, getpeername shows it"))
}

fn connected_udp(form: Form) -> Outcome {
    let dialled = form.dialled(PORT);
    let socket = udp_socket(form)?;
    socket.connect(dialled)?;
    expect("getpeername", socket.peer_addr()?, dialled)?;
    socket.send(QUESTION)?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer)?;
    expect("the echo", &answer[..length], QUESTION)?;
    expect("recvmsg", from, dialled)?;
    Ok(format!(
        "{dialled} answered, getpeername and recvmsg show it"
    ))
}

fn unconnected_udp(form: Form) -> Outcome {
    let dialled = form.dialled(PORT);
    let socket = udp_socket(form)?;
    socket.send_to(QUESTION, dialled)?;
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer)?;
    expect("the echo", &answer[..length], QUESTION)?;
    expect("recvmsg", from, dialled)?;
    Ok(format!("{dialled} answered, recvmsg shows it"))
}

fn no_backend(set_retval: bool) -> Outcome {
    let expected = match set_retval {
        true => ErrorKind::ConnectionRefused,
        false => ErrorKind::PermissionDenied,
    };
    let forms = TCP_CHECKS.map(|(_, form)| form);
    for form in forms.into_iter().filter(|form| form.is_there()) {
        let dialled = form.dialled(EMPTY_PORT);
        let refused = TcpStream::connect_timeout(&dialled, PATIENCE).err();
        expect("TCP", refused.map(|error| error.kind()), Some(expected))?;
        let refused = udp_socket(form)?.send_to(QUESTION, dialled).err();
        expect("UDP", refused.map(|error| error.kind()), Some(expected))?;
    }
    Ok(format!("refused at once: {expected}"))
}

fn other_addresses() -> Outcome {
    let dialled = Form::V4.dialled(PORT + 7);
    match TcpStream::connect_timeout(&dialled, PATIENCE) {
        Err(error) if error.kind() == ErrorKind::NetworkUnreachable => Ok("left alone".to_owned()),
        Err(error) => Err(error.into()),
        Ok(_) => failed(format!("{dialled} is no service, and answered")),
    }
}

/// The sockets of the checks before are closed: each was counted twice.
fn counters(dataplane: &Dataplane) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let totals = dataplane.maps.totals()?;
        let holes: u64 = totals.services.values().map(|row| row.hole).sum();
        expect("rows missed", holes, 0)?;
        let opens: u64 = totals.backends.values().map(|row| row.opens).sum();
        let closes: u64 = totals.backends.values().map(|row| row.closes).sum();
        if opens > 0 && opens == closes {
            return Ok(format!("{opens} opens, {closes} closes"));
        }
        if Instant::now() > deadline {
            return failed(format!("{opens} opens, but {closes} closes"));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn closing(place: &Place, dataplane: &Dataplane) -> Outcome {
    if !place.probe.has("sock_destroy") {
        return Err(Refusal::Skipped(
            "this kernel cannot close sockets of others".to_owned(),
        ));
    }
    let mut stream = TcpStream::connect_timeout(&Form::V4.dialled(PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let here = ["/proc/thread-self/ns/net".into()];
    let closed = close_sockets(&dataplane.maps, &[BackendId(1)].into(), &here)?;
    expect("sockets closed", closed.sockets, 1)?;
    let aborted = stream.read(&mut [0]).err().map(|error| error.kind());
    expect("read", aborted, Some(ErrorKind::ConnectionAborted))?;
    Ok("the client of a backend that is gone is told at once".to_owned())
}

/// A second start finds what the first one pinned.
fn adoption(place: &Place) -> Outcome {
    let again = dataplane::start(&place.config, &place.probe)?;
    expect("adopted", again.adopted, true)?;
    tcp(Form::V4)?;
    Ok("a second start replaces the programs and keeps the tables".to_owned())
}

/// Programs of other maps serve until new ones take over.
fn upgrade(place: &Place) -> Outcome {
    let directory = |suffix: &str| {
        let name = format!("v{ABI_VERSION}{suffix}");
        place.config.bpf_dir.join(name)
    };
    std::fs::rename(directory(""), directory("-before"))?;
    let open = TcpStream::connect_timeout(&Form::V4.dialled(PORT), PATIENCE)?;
    let mut again = dataplane::start(&place.config, &place.probe)?;
    tcp(Form::V4)?;
    let Some(take_over) = &mut again.take_over else {
        return failed("the other version was not noticed".to_owned());
    };
    take_over.run()?;
    tcp(Form::V4)?;
    let dialled = Form::V4.dialled(PORT);
    expect("getpeername", open.peer_addr()?, dialled)?;
    Ok("new programs take over while connections go on".to_owned())
}

pub(super) fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: T,
    expected: T,
) -> Result<(), Refusal> {
    if found == expected {
        return Ok(());
    }
    failed(format!("{what}: {found:?} instead of {expected:?}"))
}

pub(super) fn failed<T>(why: String) -> Result<T, Refusal> {
    Err(Refusal::Failed(why))
}

fn udp_socket(form: Form) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(form.any())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Serves until the process ends.
pub(super) fn tcp_echo(address: IpAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((address, 0))?;
    let bound = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..length]);
                }
            });
        }
    });
    Ok(bound)
}

fn udp_echo(address: IpAddr) -> io::Result<SocketAddr> {
    let socket = UdpSocket::bind((address, 0))?;
    let bound = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(bound)
}
