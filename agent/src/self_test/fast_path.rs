//! What is tried of the way past the node's routes: from a pod to another one beside it, while the node forwards nothing.

use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use agent_ebpf::abi::LinkIndex;
use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::checks::expect;
use super::lab::{Lab, Space, pod};
use super::packets::network;
use super::place::Place;
use super::{Outcome, PREFIX, Refusal};
use crate::dataplane::{Dataplane, PodLinks};
use crate::network::LinkGuard as _;
use crate::network::addresses::{host_mac, pod_mac};

const PORT: u16 = 9;
/// For what should come, and what should not.
const PATIENCE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);
/// Of a frame's header.
const ETHERNET: usize = 14;

/// A pod: its link at the node, its addresses, and the node's beside them.
struct Pod {
    link: &'static str,
    addresses: [(&'static str, &'static str); 2],
}

const A: Pod = Pod {
    link: "kn-st-a",
    addresses: [
        ("198.18.78.2/30", "198.18.78.1/30"),
        ("2001:db8:78a::2/64", "2001:db8:78a::1/64"),
    ],
};
const B: Pod = Pod {
    link: "kn-st-b",
    addresses: [
        ("198.18.78.6/30", "198.18.78.5/30"),
        ("2001:db8:78b::2/64", "2001:db8:78b::1/64"),
    ],
};

impl Pod {
    fn own(&self) -> [IpAddr; 2] {
        self.addresses.map(|(own, _)| network(own).addr())
    }

    /// Connects it, guarded.
    fn connect(
        &self,
        lab: &mut Lab,
        links: &PodLinks,
        families: &[usize],
    ) -> Result<(Space, LinkIndex), Refusal> {
        let addresses: Vec<(IpNet, IpNet)> = families
            .iter()
            .map(|family| self.addresses[*family])
            .map(|(own, node)| (network(own), network(node)))
            .collect();
        let (space, index) = pod(lab, self.link, &addresses, |index| {
            Ok(links.guard(index, self.link, &self.own())?)
        })?;
        Ok((space, LinkIndex(index)))
    }
}

/// Two pods of a node that is no router: what arrives went past its routes.
pub(super) fn between_pods(place: &Place, dataplane: &Dataplane) -> Outcome {
    if !place.probe.fast_paths {
        return Err(Refusal::Skipped("this kernel has none".to_owned()));
    }
    let families: Vec<usize> = [0, 1].into_iter().filter(|it| has_family(*it)).collect();
    let mut lab = Lab::new(&format!("{PREFIX}fast-"));
    let links = PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
    let (a, from) = A.connect(&mut lab, &links, &families)?;
    let (b, to) = B.connect(&mut lab, &links, &families)?;
    for family in &families {
        let family = *family;
        forward(family, false)?;
        let before = dataplane.maps.pod_traffic()?;
        let seen = frame(&a, &b, family, 64)?;
        let Some(seen) = seen else {
            return expect("a datagram past the routes", false, true).map(|()| String::new());
        };
        let macs = [pod_mac, host_mac].map(|of| of(&B.own().into_iter().collect()));
        expect("for the pod's own link", seen[..12] == macs.concat(), true)?;
        let hops = seen[ETHERNET + [8, 7][family]];
        expect("one hop later", hops == 63, true)?;
        let after = dataplane.maps.pod_traffic()?;
        let more = |link, of: fn(&agent_ebpf::abi::pods::PodTraffic) -> u64| {
            after.get(&link).map(of) > before.get(&link).map(of)
        };
        expect("sent, counted", more(from, |it| it.sent.packets), true)?;
        expect("received, counted", more(to, |it| it.received.bytes), true)?;

        let dying = frame(&a, &b, family, 1)?;
        expect("after its last hop", dying.is_some(), false)?;
        links.withdraw(to.0)?;
        let none = frame(&a, &b, family, 64)?;
        expect("to a link that is about to go", none.is_some(), false)?;
        forward(family, true)?;
        let routed = frame(&a, &b, family, 64)?;
        expect("by the routes", routed.is_some(), true)?;
        links.guard(to.0, B.link, &B.own())?;
    }
    Ok(format!(
        "{} of 2 families, past the node's routes",
        families.len()
    ))
}

fn has_family(family: usize) -> bool {
    UdpSocket::bind(SocketAddr::new(any(family), 0)).is_ok()
}

fn any(family: usize) -> IpAddr {
    match family {
        0 => [0, 0, 0, 0].into(),
        _ => [0; 8].into(),
    }
}

fn forward(family: usize, on: bool) -> io::Result<()> {
    let name = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"][family];
    fs::write(format!("/proc/sys/net/{name}"), if on { "1" } else { "0" })
}

/// The frame in which a datagram from one pod comes to the other, as whoever listens there on the link sees it.
fn frame(a: &Space, b: &Space, family: usize, hops: u32) -> Result<Option<Vec<u8>>, Refusal> {
    let to = SocketAddr::new(B.own()[family], PORT);
    let (receiver, tap) = b.run(move || {
        let tap = tap(family)?;
        io::Result::Ok((UdpSocket::bind(to)?, tap))
    })??;
    a.run(move || {
        let socket = UdpSocket::bind(SocketAddr::new(any(family), 0))?;
        match family {
            0 => socket.set_ttl(hops)?,
            _ => SockRef::from(&socket).set_unicast_hops_v6(hops)?,
        }
        socket.send_to(b"past the routes?", to)
    })??;
    receiver.set_read_timeout(Some(if hops > 1 { PATIENCE } else { QUIET }))?;
    let forwarded = receiver.recv(&mut [0; 32]);
    if let Err(error) = forwarded {
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(error.into()),
        };
    }
    tap.set_read_timeout(Some(PATIENCE))?;
    let mut frame = vec![0; 2048];
    loop {
        let length = (&tap).read(&mut frame)?;
        if frame[..length].ends_with(b"past the routes?") {
            frame.truncate(length);
            return Ok(Some(frame));
        }
    }
}

/// Hears the frames of a family on every link.
fn tap(family: usize) -> io::Result<Socket> {
    let ethertype = [libc::ETH_P_IP, libc::ETH_P_IPV6][family];
    let protocol = u16::try_from(ethertype).map_err(io::Error::other)?.to_be();
    Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(protocol))),
    )
}
