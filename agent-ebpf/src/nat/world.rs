//! What a packet meets: the table of connections, the node, and other nodes.

use crate::abi::{Address, Connection, FlowKey, Port};
use crate::packet::Network;

/// What happened when a row was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Added,
    /// There is one of this key.
    Present,
    /// There is no room.
    Full,
}

/// The table of connections.
pub trait Connections {
    /// Copies a row; false when there is none. With a packet, its time, its bytes and what it has seen are brought up to now,
    /// and the packet's time is known.
    fn row(&self, key: &FlowKey, into: &mut Connection, use_now: Option<&mut Use>) -> bool;
    fn add(&self, key: &FlowKey, row: &Connection) -> Added;
    /// False when there is no room.
    fn put(&self, key: &FlowKey, row: &Connection) -> bool;
    /// Changes the link of a row, if it is there.
    fn moved(&self, key: &FlowKey, link: u32);
    /// Takes back that a packet of so many bytes was counted in a row, if it is there.
    fn uncount(&self, key: &FlowKey, bytes: u32);
}

/// A packet of a row's flow.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// 0 until somebody needs it: most packets of pods have no row, and reading the clock costs as much as looking for one.
    pub now_ns: u64,
    /// From the IP header on.
    pub bytes: u32,
    /// Its TCP flags.
    pub flags: u8,
}

/// The node, as a packet at one of its uplinks meets it, or at a pod's link.
pub trait Node {
    fn now_ns(&self) -> u64;
    /// Index of the uplink.
    fn link(&self) -> u32;
    /// The uplink is a tunnel to other nodes' pods, whom no other link reaches.
    fn is_tunnel(&self) -> bool;
    /// The node's address on this link, of a pod's one where the node refuses; [`PodEntry::NONE`] when it has none of the
    /// family.
    fn own_address(&self, is_ipv4: bool) -> Address;
    fn is_node_address(&self, address: &Address) -> bool;
    /// First and last node port.
    fn node_ports(&self) -> (u16, u16);
    /// Whether pods have it as a host port.
    fn is_host_port(&self, port: Port) -> bool;
    /// The first of the ports for connections of others, and how many there are.
    fn port_range(&self) -> (u16, u16);
    /// Whether a socket of the node would get what comes back by `answers`.
    fn has_socket(&self, answers: &FlowKey) -> bool;
    /// The packet comes from a pod of this node.
    fn is_pods(&self) -> bool;
    /// The address is that of a pod of this node.
    fn has_pod(&self, address: &Address) -> bool;
    /// A pod's packet is to have the node's address towards `destination`.
    fn masquerades(&self, destination: &Address) -> bool;
    /// The packet was made by a socket of this node.
    fn is_own(&self) -> bool;
    /// The address is that of another node which shares a link with this one, or of a backend there.
    fn is_near(&self, backend: &Address) -> bool;
    /// The node that answered for a load balancer's address before this one did.
    fn former(&self, address: &Address) -> Option<Address>;
    /// A client was given a backend, as `row` says of packets of `key`.
    fn opened(&self, key: &FlowKey, row: &Connection);
    /// A connection is refused; a hole is a row that was missing.
    fn refused(&self, key: &FlowKey, service_id: u32, is_hole: bool);
}

/// What became of a packet that was to be handed to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// It is on its way.
    Done,
    /// It is on its way as soon as the node says which hardware address it has.
    Asked,
    /// The way takes no packets of its size: the network stack tells its sender.
    TooLarge,
    /// There is no such way, or the packet came by it.
    Impossible,
}

/// Other nodes.
pub trait Neighbours {
    /// Sends the packet, as it is but for a hop, to the node by which those of `flow` leave. Where it would have to ask for
    /// that node's hardware address first, only if it `may_ask`.
    fn hand_over(&mut self, packet: &Network, flow: &FlowKey, may_ask: bool) -> Handover;
    /// Sends the packet, as it is, out by the uplink `link`, whose programs it meets. False where no route for those of `flow`
    /// leads there.
    fn leave_by(&mut self, link: u32, packet: &Network, flow: &FlowKey) -> bool;
}
