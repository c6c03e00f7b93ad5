//! What of a packet's headers policy looks at.

use super::{Conversation, Kind, Packet};
use crate::abi::TCP;
use crate::packet::{
    Bytes, ICMPV6, Malformed, Network, Part, TCP_ACK, TCP_SYN, Transport, quoted_ipv4, quoted_ipv6,
    quoted_transport, transport,
};
use crate::router::is_routed;

/// `IPPROTO_SCTP`.
const SCTP: u8 = 132;

/// Reads what is behind the network header. `from_node` says that the node's own stack sent the packet.
#[inline(always)]
pub fn look(
    bytes: &(impl Bytes + ?Sized),
    network: &Network,
    from_node: bool,
    packet: &mut Packet,
) -> Result<(), Malformed> {
    *packet = Packet {
        source: network.source,
        destination: network.destination,
        source_port: [0; 2],
        destination_port: [0; 2],
        identification: network.identification,
        about: Conversation::NONE,
        kind: Kind::Ports,
        protocol: network.protocol,
        opens: false,
        is_first_fragment: network.part == Part::First,
        from_node,
    };
    if network.part == Part::Later {
        packet.kind = Kind::LaterFragment;
        return Ok(());
    }
    match transport(bytes, network)? {
        Transport::Ports {
            source,
            destination,
            flags,
        } => {
            packet.opens = network.protocol == TCP && flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
            packet.source_port = source;
            packet.destination_port = destination;
        }
        Transport::Echo { identifier, .. } => {
            packet.source_port = identifier;
            packet.destination_port = identifier;
        }
        Transport::Error { quoted_at, .. } => {
            packet.kind = Kind::Error;
            about(bytes, network.is_ipv4, quoted_at, &mut packet.about);
        }
        // Solicitations and advertisements of routers and neighbours, and redirects.
        Transport::Message { kind: 133..=137 }
            if network.protocol == ICMPV6 && stays_on_link(network) =>
        {
            packet.kind = Kind::Neighbours;
        }
        Transport::Other if network.protocol == SCTP => {
            let [a, b, c, d] = bytes.read(network.transport_at).ok_or(Malformed)?;
            packet.source_port = [a, b];
            packet.destination_port = [c, d];
        }
        Transport::Message { .. } | Transport::Other => {}
    }
    Ok(())
}

/// Whether no router is to pass the packet on, which neighbours heed (RFC 4861). Those of the node's own addresses are
/// heard like all that is for the node.
#[inline(always)]
fn stays_on_link(network: &Network) -> bool {
    network.hops == u8::MAX && !is_routed(&network.destination)
}

/// Notes the conversation of the packet that an error quotes, as far as that can be told.
#[inline(always)]
fn about(bytes: &(impl Bytes + ?Sized), is_ipv4: bool, at: u32, found: &mut Conversation) {
    let quoted = match is_ipv4 {
        true => quoted_ipv4(bytes, at),
        false => quoted_ipv6(bytes, at),
    };
    let Ok(quoted) = quoted else {
        return;
    };
    // A later fragment does not say.
    if quoted.part == Part::Later {
        return;
    }
    match quoted_transport(bytes, &quoted) {
        Ok(Transport::Ports {
            source,
            destination,
            ..
        }) => {
            found.source_port = source;
            found.destination_port = destination;
        }
        Ok(Transport::Echo { identifier, .. }) => {
            found.source_port = identifier;
            found.destination_port = identifier;
        }
        Ok(_) if quoted.protocol == SCTP => {
            let Some([a, b, c, d]) = bytes.read(quoted.transport_at) else {
                return;
            };
            found.source_port = [a, b];
            found.destination_port = [c, d];
        }
        Ok(_) => {}
        Err(Malformed) => return,
    }
    found.source = quoted.source;
    found.destination = quoted.destination;
    found.protocol = quoted.protocol;
}

#[cfg(test)]
mod tests;
