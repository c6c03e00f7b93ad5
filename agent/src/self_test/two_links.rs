//! What is tried of a node with two ways to a client, of which its routes take the wrong one: by the link of the far backend,
//! which passes nothing on. Answers leave by the client's link.
//!
//! ```text
//! client, at one more address ── node ── far backend, where the routes lead
//! ```

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::checks::expect;
use super::lab::{LabError, Space, configure};
use super::outside::{
    CLIENT_LINK, DEAF_NODE_PORT, DEAF_PORT, EMPTY_PORT, FAMILIES, FAR_LINK, Family, NODE_PORT,
    Neighbours, PORT, SERVED, Stream, ask_as, bulk_as, dial_as, step,
};
use super::packets::network;
use super::{Outcome, Refusal};

/// Routes of this metric come first, and these after them.
const FIRST: u32 = 10;
const SECOND: u32 = 20;
/// A routing table of the check's own.
const TABLE: u32 = 77;

/// One connection of each family stays open.
pub(super) fn check(neighbours: &Neighbours, streams: &mut Vec<Stream>) -> Outcome {
    for of in ["all", CLIENT_LINK] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"), "0")?;
    }
    if fs::exists("/proc/sys/net/ipv6")? {
        // One machine is told all that is tried here.
        fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")?;
    }
    for family in FAMILIES.iter().filter(|it| it.is_known()) {
        roam(&neighbours.client, family)?;
        let tap = neighbours.far.run(tap)??;
        streams.push(each_way(&neighbours.client, family)?);
        let strays = seen(&tap, network(family.roaming).addr())?;
        expect("packets to the client on the other link", strays, 0)?;
    }
    Ok("TCP, UDP, refusals, errors; answers leave by the client's link".to_owned())
}

/// Gives the client its other address, and the node two ways there. Of IPv4 the second is a route with a higher metric. Of
/// IPv6 that would not be looked at: what comes from a service has a table of its own.
fn roam(client: &Space, family: &'static Family) -> Result<(), LabError> {
    let roaming = network(family.roaming);
    client.configure(async move |net| net.address("lo", roaming).await)?;
    configure(async |net| {
        let by = |text| Some(network(text).addr());
        let (right, wrong) = (by(family.client), by(family.far));
        net.route_in(254, FIRST, roaming, FAR_LINK, wrong).await?;
        match family.balancer {
            IpAddr::V4(_) => net.route_in(254, SECOND, roaming, CLIENT_LINK, right).await,
            IpAddr::V6(balancer) => {
                net.route_in(TABLE, FIRST, roaming, CLIENT_LINK, right)
                    .await?;
                for from in [balancer.into(), network(family.node_at_client).addr()] {
                    if let IpAddr::V6(from) = from {
                        net.rule(from, TABLE).await?;
                    }
                }
                Ok(())
            }
        }
    })
}

fn each_way(from: &Space, family: &Family) -> Result<Stream, Refusal> {
    let own = network(family.roaming).addr();
    let node = network(family.node_at_client).addr();
    let at_node = |port| SocketAddr::new(node, port);
    let at_balancer = |port| SocketAddr::new(family.balancer, port);
    let (stream, seen) = step("TCP to the pod", dial_as(from, own, at_node(NODE_PORT)))?;
    expect("whom the pod sees", seen, stream.local_addr()?)?;
    for to in [at_node(NODE_PORT), at_balancer(PORT)] {
        let what = to.to_string();
        step(&what, dial_as(from, own, to))?;
        step(&what, ask_as(from, own, to, 1))?;
        step(&what, ask_as(from, own, to, 1000))?;
        // The far link takes less at once, which the sender has to be told by the right link, too.
        step(&what, bulk_as(from, own, to))?;
    }
    for to in [
        at_node(DEAF_NODE_PORT),
        at_balancer(DEAF_PORT),
        at_balancer(EMPTY_PORT),
    ] {
        let what = format!("{to}, where nobody listens");
        let refused = dial_as(from, own, to).err().map(|error| error.kind());
        expect(&what, refused, Some(ErrorKind::ConnectionRefused))?;
        let refused = ask_as(from, own, to, 1).err().map(|error| error.kind());
        expect(&what, refused, Some(ErrorKind::ConnectionRefused))?;
    }
    if own.is_ipv4() {
        let pod = SocketAddr::new(network(family.pod).addr(), SERVED);
        step("the pod's own address", dial_as(from, own, pod))?;
        step("the pod's own address", ask_as(from, own, pod, 1))?;
    }
    Ok(("the pod by the second of two links", stream))
}

/// Hears what comes to the far end of a link.
fn tap() -> io::Result<Socket> {
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    let protocol = Protocol::from(i32::from(protocol.to_be()));
    let tap = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
    tap.set_recv_buffer_size(8 << 20)?;
    tap.set_nonblocking(true)?;
    Ok(tap)
}

/// How many of the frames that came there are for an address. There have to be others, as a backend is there, too.
fn seen(tap: &Socket, address: IpAddr) -> Result<usize, Refusal> {
    let (mut strays, mut others) = (0, 0);
    let mut frame = [0; 2048];
    loop {
        let length = match { tap }.read(&mut frame) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        };
        let to = match (address, &frame[..length]) {
            (IpAddr::V4(_), [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, packet @ ..]) => {
                packet.get(16..20)
            }
            (IpAddr::V6(_), [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..]) => {
                packet.get(24..40)
            }
            _ => None,
        };
        let is_it = match address {
            IpAddr::V4(address) => to == Some(&address.octets()[..]),
            IpAddr::V6(address) => to == Some(&address.octets()[..]),
        };
        strays += usize::from(is_it);
        others += usize::from(!is_it);
    }
    expect("frames to the far backend", others > 0, true)?;
    Ok(strays)
}
