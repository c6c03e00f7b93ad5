//! Which flow a packet belongs to. Pure.

use crate::abi::{Connection, FlowKey, FragmentKey, FragmentPorts, Scope, ServiceKey, Side};
use crate::packet::{Network, Part, Transport};
use crate::select::mix;

/// Remembers the ports of first fragments for those that come later.
pub trait Fragments {
    fn remember(&self, key: &FragmentKey, ports: &FragmentPorts);
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
}

/// Whose ports a packet's are; `None` for one that belongs to no flow, or to one whose first fragment was not seen.
#[inline(always)]
pub fn ports(
    fragments: &impl Fragments,
    network: &Network,
    transport: &Transport,
    side: Side,
) -> Option<FragmentPorts> {
    if network.part == Part::Later {
        return fragments.ports(&fragment(network, side));
    }
    let found = header_ports(transport)?;
    if network.part == Part::First {
        fragments.remember(&fragment(network, side), &found);
    }
    Some(found)
}

/// The ports that a transport header has. An echo's identifier stands for that of who asks.
#[inline(always)]
pub fn header_ports(transport: &Transport) -> Option<FragmentPorts> {
    let (source, destination) = match *transport {
        Transport::Ports {
            source,
            destination,
            ..
        } => (source, destination),
        Transport::Echo {
            identifier,
            is_request: true,
        } => (identifier, [0; 2]),
        Transport::Echo { identifier, .. } => ([0; 2], identifier),
        _ => return None,
    };
    Some(FragmentPorts {
        source,
        destination,
    })
}

#[inline(always)]
fn fragment(network: &Network, side: Side) -> FragmentKey {
    FragmentKey {
        source: network.source,
        destination: network.destination,
        identification: network.identification,
        protocol: network.protocol,
        side,
        pad: [0; 2],
    }
}

impl FlowKey {
    /// The flow of a packet with these ports.
    #[inline(always)]
    pub fn of(network: &Network, ports: FragmentPorts, side: Side) -> Self {
        Self {
            source: network.source,
            destination: network.destination,
            source_port: ports.source,
            destination_port: ports.destination,
            protocol: network.protocol,
            side,
            pad: [0; 2],
        }
    }

    /// The service address that a packet of this flow dials, if it is one's. A pod dials what sockets in the cluster do.
    #[inline(always)]
    pub fn dialled(&self) -> ServiceKey {
        ServiceKey {
            address: self.destination,
            port: self.destination_port,
            protocol: self.protocol,
            scope: match self.side {
                Side::FROM_POD => Scope::CLUSTER,
                _ => Scope::EXTERNAL,
            },
        }
    }

    /// The opposite direction, at `side`.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self, side: Side) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            side,
            pad: [0; 2],
        }
    }

    /// What `row` makes of a packet of this flow, for a look at `side`.
    #[inline(always)]
    #[must_use]
    pub fn after(&self, row: &Connection, side: Side) -> Self {
        Self {
            source: row.source,
            destination: row.destination,
            source_port: row.source_port,
            destination_port: row.destination_port,
            protocol: self.protocol,
            side,
            pad: [0; 2],
        }
    }

    /// The flow of the answers to what `row` makes of this one. They pass at the other side; those of a pod that calls
    /// itself leave it like its call.
    #[inline(always)]
    #[must_use]
    pub fn answers(&self, row: &Connection) -> Self {
        let to_itself = self.side == Side::FROM_POD && row.destination == self.source;
        let side = match to_itself {
            true => self.side,
            false => self.side.other(),
        };
        self.after(row, self.side).reversed(side)
    }

    /// Thirty-two bits of all that the key says, the same on every node.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        let mut hash = 0;
        for word in self.source.words() {
            hash = stir(hash, u32::from_be(word));
        }
        for word in self.destination.words() {
            hash = stir(hash, u32::from_be(word));
        }
        let ([a, b], [c, d]) = (self.source_port, self.destination_port);
        hash = stir(hash, u32::from_be_bytes([a, b, c, d]));
        hash = stir(hash, u32::from_be_bytes([0, 0, self.protocol, self.side.0]));
        (mix(hash) >> 32) as u32
    }
}

/// One step of a hash: what went in before is spread over all bits.
#[inline(always)]
pub(crate) const fn stir(hash: u32, word: u32) -> u32 {
    (hash ^ word).wrapping_mul(0x9e37_79b1).rotate_left(15)
}
