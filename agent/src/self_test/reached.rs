//! What is tried of a pod that a client outside reaches at the pod's own address, by a route of its own: past the node's
//! routes, and by them.

use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent_ebpf::checksum::Sum;
use socket2::{Domain, Protocol, Socket, Type};

use super::Outcome;
use super::Refusal;
use super::checks::expect;
use super::lab::Space;
use super::outside::{
    FAMILIES, Family, Neighbours, SERVED, Stream, UNSERVED, ask, attach, bulk, dial, step,
};
use super::packets::network;
use super::place::Place;
use crate::dataplane;

const PATIENCE: Duration = Duration::from_secs(5);
const ECHO: [u8; 2] = [8, 128];
const ECHO_REPLY: [u8; 2] = [0, 129];
const IDENTIFIER: [u8; 2] = [0x4b, 0x4e];

/// The pod serves, as it does since the checks before. One connection of each family stays open.
pub(super) fn check(place: &Place, neighbours: &Neighbours, streams: &mut Vec<Stream>) -> Outcome {
    let mut slow = place.probe.clone();
    slow.without_fast_paths();
    for probe in [&slow, &place.probe] {
        attach(&dataplane::start(&place.config, probe)?, neighbours)?;
        for (n, family) in FAMILIES.iter().enumerate() {
            if family.is_known() {
                streams.push(each_way(neighbours, family, n)?);
            }
        }
    }
    Ok("TCP, UDP, refusals, echoes; past the node's routes and by them".to_owned())
}

fn each_way(neighbours: &Neighbours, family: &Family, n: usize) -> Result<Stream, Refusal> {
    let from = &neighbours.client;
    let [client, pod] = [family.client, family.pod].map(|it| network(it).addr());
    let [served, unserved] = [SERVED, UNSERVED].map(|port| SocketAddr::new(pod, port));
    let (stream, seen) = step("TCP to the pod's own address", dial(from, served))?;
    expect("whom the pod sees", seen, stream.local_addr()?)?;
    let seen = step("UDP to the pod's own address", ask(from, served, 1))?;
    expect("whom the pod sees of UDP", seen.ip(), client)?;
    step("fragments to the pod itself", ask(from, served, 4000))?;
    step("much to the pod itself", bulk(from, served))?;
    let refused = dial(from, unserved).err().map(|error| error.kind());
    expect("of TCP", refused, Some(ErrorKind::ConnectionRefused))?;
    let refused = ask(from, unserved, 1).err().map(|error| error.kind());
    expect("of UDP", refused, Some(ErrorKind::ConnectionRefused))?;
    step("an echo of the pod itself", echo(from, pod, n))?;
    Ok(("the pod at its own address", stream))
}

/// Waits for a machine's echo, in the family with this number.
fn echo(from: &Space, of: IpAddr, family: usize) -> io::Result<()> {
    let echoed = from.run(move || {
        let (domain, protocol) = [
            (Domain::IPV4, Protocol::ICMPV4),
            (Domain::IPV6, Protocol::ICMPV6),
        ][family];
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Others' answers are not taken.
        socket.connect(&SocketAddr::new(of, 0).into())?;
        let [a, b] = IDENTIFIER;
        let mut request = [ECHO[family], 0, 0, 0, a, b, 0, 1];
        // Of IPv6 the kernel writes it.
        let checksum = Sum::of(&request).checksum();
        request[2..4].copy_from_slice(&checksum);
        socket.send(&request)?;
        let mut answer = [0; 256];
        loop {
            let length = (&socket).read(&mut answer)?;
            // Of IPv4 its header comes with it.
            let at = [20, 0][family];
            let is_it = |it: &[u8]| it[0] == ECHO_REPLY[family] && it[4..6] == IDENTIFIER;
            if answer[..length].get(at..at + 8).is_some_and(is_it) {
                return Ok(());
            }
        }
    });
    echoed.map_err(io::Error::other)?
}
