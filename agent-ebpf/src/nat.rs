//! What becomes of a packet at an uplink: services from outside, and what leaves under the node's address. At a pod's link:
//! services that the pod dials by other means than sockets that the programs see. Pure.
//!
//! ```text
//!                      in                                out
//!   client ──▶ service ═▶ client ──▶ backend ── routed ──▶ the backend's link            a backend on this node
//!                         client ──▶ backend ── routed ──▶ ═▶ node:port ──▶ backend      one elsewhere
//!   backend ──▶ node:port ═▶ backend ──▶ client ── routed ──▶ ═▶ service ──▶ client
//!                         pod ──▶ world ──────── routed ──▶ ═▶ node:port ──▶ world       masquerade
//!   world ──▶ pod      ─────────────────────────────────────────────────────▶ pod        [`reached`]
//!   pod ──▶ world, in answer ────────────────────────────────────────────────▶ world      as it is
//!
//!                      from the pod                      to the pod
//!   pod ──▶ service    ═▶ pod ──▶ backend ───── routed
//!                         backend ──▶ pod ───── routed ──▶ ═▶ service ──▶ pod
//! ```
//!
//! A service may ask that its backends' nodes answer clients themselves (direct server return). Where such a node shares a
//! link with this one, packets are handed to it as they are, for the service's address; it does what it would if they had
//! come from the client's router.
//!
//! Destinations change as a packet comes in and sources as it leaves, as the kernel routes by the one and answers errors to
//! the other. In between it is an ordinary forwarded packet between client and backend: its lifetime, the path's MTU, routes,
//! reverse-path checks and policy are the kernel's and work as always. Each `═▶` is a row of `CONNECTIONS`.

use crate::abi::{
    Address, BackendId, CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_REPLY, CONNECTION_SERVICE,
    CONNECTION_UNCHANGED, Connection, DropReason, FlowKey, PodEntry, Port, Scope, ServiceKey, Side,
    TCP, UDP,
};
use crate::flow::{Fragments, header_ports, ports, stir};
use crate::outside::{Choice, Client, OutsideTables, choose};
use crate::packet::{
    Bytes, Carried, ETHERNET_LENGTH, ICMP, ICMPV6, Network, Part, TCP_ACK, TCP_FIN, TCP_RST,
    TCP_SYN, Transport, carried, ipv4, ipv6, quoted_ipv4, quoted_ipv6, quoted_transport, transport,
};
use crate::rewrite::{Ends, Frame, rewrite, rewrite_error};

/// Ports that are tried for a connection before it is refused.
pub const PORT_ATTEMPTS: u32 = 16;
/// How much older than its last packet a row may say that it is. As often, a packet looks whether the answers' row is still
/// there: looking also tells the table that it is in use.
pub const REFRESH_NS: u64 = 250_000_000;
/// Among the TCP flags that a row has seen: anything, of any protocol. `URG` is not told apart.
pub const SEEN: u8 = 1 << 5;
/// The same: the hardware address of the node that the packet went to was not known.
const ASKED: u8 = 1 << 6;
/// Connections whose packets are another node's to translate.
pub(crate) const ELSEWHERE: u8 = CONNECTION_DIRECT | CONNECTION_FORMER;
/// A node that lives says within this time which hardware address it has: the kernel asks three times, a second apart.
const ANSWERS_WITHIN_NS: u64 = 4_000_000_000;
/// Ports below are never given to others.
const FIRST_FREE_PORT: u16 = 1024;

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
    /// Copies a row; false when there is none. With a packet, its time, its bytes and what it has seen are brought up to now.
    fn row(&self, key: &FlowKey, into: &mut Connection, use_now: Option<Use>) -> bool;
    fn add(&self, key: &FlowKey, row: &Connection) -> Added;
    /// False when there is no room.
    fn put(&self, key: &FlowKey, row: &Connection) -> bool;
    /// Changes the link of a row, if it is there.
    fn moved(&self, key: &FlowKey, link: u32);
}

/// A packet of a row's flow.
#[derive(Clone, Copy, Debug)]
pub struct Use {
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

/// Memory to work in: a program's stack is too small for it, and the steps below share it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub network: Network,
    pub transport: Transport,
    /// What an ICMP error quotes.
    pub quoted: Network,
    pub quoted_transport: Transport,
    pub key: FlowKey,
    pub row: Connection,
    pub back_key: FlowKey,
    pub back: Connection,
    pub other: Connection,
    pub used: Use,
    /// From which ports a new connection gets one, and whether its own may be kept.
    pub first_port: u16,
    pub port_count: u16,
    pub keeps_port: bool,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on as it is, or it is an error that tells of a translated packet and is translated with it.
    Pass,
    /// It goes on as the row says.
    Translated,
    /// It came in for a pod's own address, and goes on as it is.
    Reached,
    /// It was handed to another node, or leaves by another link.
    Onward,
    Drop(DropReason),
}

/// What one step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing to translate.
    Done,
    Next,
    Drop(DropReason),
}

/// Translates a packet, which was [`read`], at one side of an uplink. The steps are functions of their own because each then
/// has the whole of a program's stack.
#[inline(always)]
pub fn translate<W>(world: &mut W, work: &mut Work, side: Side) -> Fate
where
    W: Frame + Fragments + Connections + Node + OutsideTables + Neighbours,
{
    work.used.now_ns = world.now_ns();
    if matches!(work.transport, Transport::Error { .. }) {
        return error(world, work, side);
    }
    let is_identified = identify(world, work, side);
    if !is_identified || !is_known(world, work) {
        // What is for a pod's own address is nobody's to translate. Most of what comes in is some connection's: that is looked
        // up first.
        if side == Side::IN && world.has_pod(&work.network.destination) {
            if is_identified {
                reached::reached(world, work);
            }
            return Fate::Reached;
        }
        if !is_identified || work.network.part == Part::Later {
            return Fate::Pass;
        }
        let wanted = match side {
            Side::IN | Side::FROM_POD => to_service(world, work),
            Side::OUT => from_node(world, work),
            _ => Step::Done,
        };
        if wanted == Step::Next && side == Side::IN {
            mind_former(world, work);
        }
        let opened = match wanted {
            Step::Next => open(world, work),
            other => other,
        };
        match opened {
            Step::Next => {}
            Step::Done => return Fate::Pass,
            Step::Drop(reason) => return Fate::Drop(reason),
        }
    }
    if side == Side::IN && work.row.kind & ELSEWHERE != 0 {
        match handed_over(world, work) {
            Step::Done => return Fate::Onward,
            Step::Drop(reason) => return Fate::Drop(reason),
            Step::Next => {}
        }
    }
    if side == Side::OUT && answers_elsewhere(world, &work.row) && leaves_by_another(world, work) {
        // The program there sees it as if it had not been here.
        let _ = world.put(&work.key, &work.row);
        return Fate::Onward;
    }
    if work.row.kind & CONNECTION_UNCHANGED != 0 {
        return match side {
            Side::IN => Fate::Reached,
            _ => Fate::Pass,
        };
    }
    match written(world, work) {
        true => Fate::Translated,
        false => Fate::Drop(DropReason::Malformed),
    }
}

/// Hands a packet to its backend's node, or to the one whose its address was before. A connection that begins where that
/// cannot be is one like others. One that is open does not become one, as its backend would not know it; of a former node
/// it does, if only to let its client know that it is over.
#[inline(never)]
fn handed_over<W>(world: &mut W, work: &mut Work) -> Step
where
    W: Connections + Node + Neighbours,
{
    let is_formers = work.row.kind & CONNECTION_FORMER != 0;
    let was_asked = work.row.seen & ASKED != 0;
    let silence_ns = work.used.now_ns.saturating_sub(work.row.last_seen_ns);
    work.back_key = work.key.after(&work.row, Side::OUT);
    if is_formers {
        work.back_key.destination = former(world, work).unwrap_or(PodEntry::NONE);
    }
    let may_ask = !is_formers || !was_asked || silence_ns < ANSWERS_WITHIN_NS;
    let handed = world.hand_over(&work.network, &work.back_key, may_ask);
    match handed {
        Handover::Done | Handover::Asked => {
            let is_asked = handed == Handover::Asked;
            if is_formers && is_asked != was_asked {
                work.row.seen ^= ASKED;
                work.row.last_seen_ns = work.used.now_ns;
                let _ = world.put(&work.key, &work.row);
            }
            Step::Done
        }
        Handover::TooLarge => Step::Next,
        Handover::Impossible if is_formers || opens(work) => {
            work.row.kind &= !ELSEWHERE;
            match world.put(&work.key, &work.row) {
                true => Step::Next,
                false => Step::Drop(DropReason::TableFull),
            }
        }
        Handover::Impossible => Step::Drop(DropReason::NoWay),
    }
}

/// Whether a row is that of answers to a client outside, which leave by the link by which the client comes.
#[inline(always)]
pub(crate) const fn answers_client(row: &Connection) -> bool {
    row.kind & CONNECTION_REPLY != 0 && row.kind & (CONNECTION_SERVICE | CONNECTION_UNCHANGED) != 0
}

/// Whether a packet, which the node's routes have led to this link, answers a client that comes by another.
#[inline(always)]
fn answers_elsewhere(node: &impl Node, row: &Connection) -> bool {
    answers_client(row) && row.link != node.link()
}

/// Sends such a packet out by its client's link; false where no route leads to the client there: the node's own are the way.
#[inline(never)]
fn leaves_by_another(world: &mut impl Neighbours, work: &mut Work) -> bool {
    work.back_key = work.key.after(&work.row, Side::OUT);
    world.leave_by(work.row.link, &work.network, &work.back_key)
}

/// The node whose a connection is that is open already and that this one does not know: the address was that node's until
/// lately. A backend on another node would answer only what has come by there.
#[inline(always)]
fn former(node: &impl Node, work: &Work) -> Option<Address> {
    if work.key.protocol != TCP || opens(work) {
        return None;
    }
    let former = node.former(&work.key.destination)?;
    node.is_near(&former).then_some(former)
}

/// A connection that is new here may be open already, by the node whose the address was before. A function of its own, so
/// that the verifier goes on once, whatever it says.
#[inline(never)]
pub(crate) fn mind_former(node: &impl Node, work: &mut Work) {
    if work.row.kind & CONNECTION_DIRECT == 0 && former(node, work).is_some() {
        work.row.kind |= CONNECTION_FORMER;
    }
}

/// Whether there is a row for the packet's flow, which says what becomes of it.
#[inline(always)]
pub(crate) fn is_known<W>(world: &W, work: &mut Work) -> bool
where
    W: Connections + Node + OutsideTables,
{
    if !world.row(&work.key, &mut work.row, Some(work.used)) || !still_holds(world, work) {
        return false;
    }
    look_after(world, work);
    true
}

/// Keeps the answers' row there, and has answers leave by the link by which the client comes now.
#[inline(always)]
fn look_after(world: &(impl Connections + Node), work: &mut Work) {
    let (link, row) = (world.link(), &work.row);
    let has_moved =
        work.key.side == Side::IN && row.kind & CONNECTION_REPLY == 0 && row.link != link;
    if has_moved {
        work.row.link = link;
        world.moved(&work.key, link);
    }
    if has_moved || work.used.now_ns.saturating_sub(work.row.last_seen_ns) > REFRESH_NS {
        repair(world, work);
    }
}

/// Reads the packet's headers; false when it is not for us. What is malformed is the kernel's to drop: here it belongs to
/// nobody.
#[inline(never)]
pub fn read(frame: &impl Bytes, work: &mut Work) -> bool {
    let network = match carried(frame) {
        Ok(Carried::Ipv4) => ipv4(frame, ETHERNET_LENGTH),
        Ok(Carried::Ipv6) => ipv6(frame, ETHERNET_LENGTH),
        _ => return false,
    };
    let Ok(network) = network else {
        return false;
    };
    work.network = network;
    match transport(frame, &work.network) {
        Ok(transport) => {
            work.transport = transport;
            true
        }
        Err(_) => false,
    }
}

/// Says which flow the packet belongs to, if any.
#[inline(never)]
pub(crate) fn identify(fragments: &impl Fragments, work: &mut Work, side: Side) -> bool {
    let Some(ports) = ports(fragments, &work.network, &work.transport, side) else {
        return false;
    };
    work.key = FlowKey::of(&work.network, ports, side);
    work.used.bytes = work.network.end - work.network.at;
    work.used.flags = SEEN
        | match work.transport {
            Transport::Ports { flags, .. } => flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK),
            _ => 0,
        };
    true
}

/// Gives the packet what the row says.
#[inline(never)]
fn written(frame: &mut impl Frame, work: &Work) -> bool {
    rewrite(frame, &work.network, &work.transport, &ends(&work.row)).is_some()
}

#[inline(always)]
pub(crate) fn ends(row: &Connection) -> Ends {
    Ends {
        source: row.source,
        destination: row.destination,
        source_port: row.source_port,
        destination_port: row.destination_port,
    }
}

/// The packet may begin a connection: of UDP, any may.
#[inline(always)]
pub(crate) fn opens(work: &Work) -> bool {
    work.key.protocol == UDP || work.used.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether a row may be used for this packet. If not, a backend is chosen anew for a service's connection; and what a pod
/// opens is its own, whoever reached it from there before.
#[inline(always)]
pub(crate) fn still_holds(tables: &impl OutsideTables, work: &Work) -> bool {
    let row = &work.row;
    if row.kind & CONNECTION_UNCHANGED != 0 {
        return work.key.protocol != TCP || !opens(work);
    }
    if row.kind & (CONNECTION_SERVICE | CONNECTION_REPLY) != CONNECTION_SERVICE || !opens(work) {
        return true;
    }
    let over = row.seen & (TCP_FIN | TCP_RST) != 0;
    let is_ours = row.backend != REFUSED && row.kind & CONNECTION_FORMER == 0;
    is_ours && !over && tables.backend(row.backend).is_some()
}

/// The backend of connections that are refused.
pub(crate) const REFUSED: BackendId = BackendId(0);

/// Puts the answers' row back if it has given way to others.
#[inline(never)]
fn repair(connections: &impl Connections, work: &mut Work) {
    answers(work);
    if !connections.row(&work.back_key, &mut work.other, None) {
        let _ = connections.add(&work.back_key, &work.back);
    } else if work.other.link != work.back.link {
        connections.moved(&work.back_key, work.back.link);
    }
}

/// Makes the row that takes back what `work.row` makes of packets of `work.key`.
#[inline(always)]
fn answers(work: &mut Work) {
    let (key, row) = (&work.key, &work.row);
    work.back_key = key.answers(row);
    work.back = Connection {
        key_hash: work.back_key.hash(),
        link: row.link,
        last_seen_ns: work.used.now_ns,
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        backend: row.backend,
        service_id: row.service_id,
        kind: (row.kind & !ELSEWHERE) ^ CONNECTION_REPLY,
        seen: 0,
        pad: [0; 2],
        bytes: 0,
        since_ns: row.since_ns,
    };
}

/// A packet of no known connection comes in: is it for a service?
#[inline(never)]
pub(crate) fn to_service<W>(world: &W, work: &mut Work) -> Step
where
    W: Node + OutsideTables,
{
    let key = &work.key;
    if key.protocol != TCP && key.protocol != UDP {
        return Step::Done;
    }
    let client = Client {
        address: key.source,
        port: key.source_port,
        now_ns: work.used.now_ns,
    };
    let is_ipv4 = work.network.is_ipv4;
    let mut dialled = ServiceKey {
        address: key.destination,
        port: key.destination_port,
        protocol: key.protocol,
        scope: match key.side {
            Side::FROM_POD => Scope::CLUSTER,
            _ => Scope::EXTERNAL,
        },
    };
    let mut is_node_port = false;
    if !world.is_service(&dialled) {
        if !may_be_node_port(world, key) {
            return Step::Done;
        }
        is_node_port = true;
        dialled.address = unspecified(is_ipv4);
    }
    let mut kind = CONNECTION_SERVICE;
    let (service_id, backend, address, port) = match choose(world, &client, &dialled) {
        Choice::NotService => return Step::Done,
        Choice::NotServed => return Step::Drop(DropReason::SourceRange),
        Choice::Backend {
            service_id,
            id,
            entry,
            is_direct,
        } => {
            let is_far = is_direct && world.is_near(&entry.address);
            if is_far {
                kind |= CONNECTION_DIRECT;
            }
            // What comes for another node's port was handed over by that node, if the service asks for it.
            let is_own = !is_node_port || world.is_node_address(&key.destination);
            if !is_own && (is_far || !is_direct) {
                return Step::Done;
            }
            (service_id, id, entry.address, entry.port)
        }
        Choice::NoBackend {
            service_id,
            is_hole,
        } => {
            world.refused(&work.key, service_id, is_hole);
            if is_node_port {
                // Nothing listens there: the node's stack refuses it.
                return Step::Done;
            }
            let own = world.own_address(is_ipv4);
            if own == PodEntry::NONE {
                return Step::Drop(DropReason::NoBackend);
            }
            // Nobody can listen on port 0: the node's stack refuses it, and its refusal is translated back.
            (service_id, REFUSED, own, [0; 2])
        }
    };
    let key = &work.key;
    // A pod that calls itself takes what comes from its own address for a forgery, and hears the service instead.
    let source = match key.side == Side::FROM_POD && address == key.source {
        true => key.destination,
        false => key.source,
    };
    work.row = Connection {
        key_hash: 0,
        link: world.link(),
        last_seen_ns: work.used.now_ns,
        source,
        destination: address,
        source_port: key.source_port,
        destination_port: port,
        backend,
        service_id,
        kind,
        seen: work.used.flags,
        pad: [0; 2],
        bytes: work.used.bytes.into(),
        since_ns: work.used.now_ns,
    };
    work.keeps_port = true;
    (work.first_port, work.port_count) = (FIRST_FREE_PORT, u16::MAX - FIRST_FREE_PORT);
    Step::Next
}

#[inline(always)]
fn may_be_node_port(node: &impl Node, key: &FlowKey) -> bool {
    let (first, last) = node.node_ports();
    let port = u16::from_be_bytes(key.destination_port);
    let may_be = last == 0 || first <= port && port <= last;
    let address = &key.destination;
    (may_be || node.is_host_port(key.destination_port))
        && (node.is_node_address(address) || node.is_near(address))
}

#[inline(always)]
const fn unspecified(is_ipv4: bool) -> Address {
    match is_ipv4 {
        true => Address::v4([0; 4]),
        false => PodEntry::NONE,
    }
}

/// A packet of no known connection leaves: is it to have the node's address?
#[inline(never)]
pub(crate) fn from_node<W>(world: &W, work: &mut Work) -> Step
where
    W: Connections + Node,
{
    let (mut backend, mut service_id) = (REFUSED, 0);
    let mut keeps_port = true;
    let is_own = world.is_own();
    work.back_key = work.key.reversed(if is_own { Side::IN } else { Side::OUT });
    if is_own {
        if !opens(work) || !world.row(&work.back_key, &mut work.other, None) {
            return Step::Done;
        }
        // The answers would be taken for those of another's connection that has this port of the node.
        keeps_port = false;
    } else if world.is_pods() {
        // No client outside sends it, so there is no row to look for.
        if !world.masquerades(&work.key.destination) {
            return Step::Done;
        }
    } else if world.row(&work.back_key, &mut work.other, None)
        && work.other.kind == CONNECTION_SERVICE | CONNECTION_REPLY
    {
        // A client's packet to a backend on another node, which would else answer it directly.
        (backend, service_id) = (work.other.backend, work.other.service_id);
    } else {
        return Step::Done;
    }
    let own = world.own_address(work.network.is_ipv4);
    let port = u16::from_be_bytes(work.key.source_port);
    let is_echo = matches!(work.key.protocol, ICMP | ICMPV6);
    // What answers an echo has no identifier of its own to be known by.
    if own == PodEntry::NONE || is_echo && port == 0 {
        return Step::Done;
    }
    let key = &work.key;
    work.row = Connection {
        key_hash: 0,
        link: world.link(),
        last_seen_ns: work.used.now_ns,
        source: own,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        backend,
        service_id,
        kind: 0,
        seen: work.used.flags,
        pad: [0; 2],
        bytes: work.used.bytes.into(),
        since_ns: work.used.now_ns,
    };
    let (first, last) = world.node_ports();
    let is_node_port = last != 0 && first <= port && port <= last;
    let is_taken = is_node_port || world.is_host_port(work.key.source_port);
    work.keeps_port = keeps_port && (is_echo || port >= FIRST_FREE_PORT && !is_taken);
    (work.first_port, work.port_count) = world.port_range();
    Step::Next
}

/// Adds both rows of a connection. Where the answers' row is another's, another source port is tried.
#[inline(never)]
pub(crate) fn open<W>(world: &W, work: &mut Work) -> Step
where
    W: Connections + Node,
{
    let seed = work.key.hash();
    work.row.key_hash = seed;
    for attempt in 0..PORT_ATTEMPTS {
        if attempt > 0 || !work.keeps_port {
            let offset = stir(seed, attempt) % u32::from(work.port_count).max(1);
            work.row.source_port = (work.first_port + offset as u16).to_be_bytes();
        }
        answers(work);
        if work.key.side == Side::OUT && world.has_socket(&work.back_key) {
            continue;
        }
        match add_answers(world, work) {
            Added::Present => {}
            Added::Added if world.put(&work.key, &work.row) => {
                let is_ours = work.row.kind & CONNECTION_FORMER == 0;
                if work.key.side != Side::OUT && work.row.backend != REFUSED && is_ours {
                    world.opened(&work.key, &work.row);
                }
                return Step::Next;
            }
            Added::Added | Added::Full => return Step::Drop(DropReason::TableFull),
        }
    }
    Step::Drop(DropReason::NoPort)
}

/// Adds the answers' row, where it is nobody else's.
#[inline(always)]
fn add_answers(connections: &impl Connections, work: &mut Work) -> Added {
    let added = connections.add(&work.back_key, &work.back);
    if added == Added::Present
        && connections.row(&work.back_key, &mut work.other, None)
        && may_give_way(work)
        && connections.put(&work.back_key, &work.back)
    {
        return Added::Added;
    }
    added
}

/// Whether an answers' row that is there is this connection's own from before, or that of a refusal, which is over.
#[inline(always)]
fn may_give_way(work: &Work) -> bool {
    let (other, back) = (&work.other, &work.back);
    let refusal = other.backend == REFUSED && other.service_id != 0;
    refusal || ends(other) == ends(back)
}

/// An ICMP error about a packet that was translated here, or one of its answers.
#[inline(always)]
fn error<W>(world: &mut W, work: &mut Work, side: Side) -> Fate
where
    W: Frame + Connections + Node + Neighbours,
{
    /// `ICMP_REDIRECT`
    const REDIRECT: u8 = 5;
    let Transport::Error { kind, quoted_at } = work.transport else {
        return Fate::Pass;
    };
    if !read_quoted(world, work, quoted_at, side) || !world.row(&work.key, &mut work.row, None) {
        return Fate::Pass;
    }
    if work.network.is_ipv4 && kind == REDIRECT {
        return Fate::Drop(DropReason::Redirect);
    }
    // About an answer that this node has not seen.
    let is_elsewhere = side == Side::IN && work.row.kind & ELSEWHERE != 0;
    if is_elsewhere && error_handed_over(world, work)
        || side == Side::OUT
            && answers_elsewhere(world, &work.row)
            && leaves_by_another(world, work)
    {
        return Fate::Onward;
    }
    match error_written(world, work) {
        true => Fate::Pass,
        false => Fate::Drop(DropReason::Malformed),
    }
}

#[inline(never)]
fn error_handed_over(world: &mut (impl Node + Neighbours), work: &mut Work) -> bool {
    work.back_key = work.key.after(&work.row, Side::OUT);
    if work.row.kind & CONNECTION_FORMER != 0 {
        let former = world.former(&work.key.destination);
        work.back_key.destination = former.unwrap_or(PodEntry::NONE);
    }
    let handed = world.hand_over(&work.network, &work.back_key, true);
    matches!(handed, Handover::Done | Handover::Asked)
}

/// Reads what an error quotes; the key is that of the answers to it, which pass here.
#[inline(never)]
fn read_quoted(frame: &impl Bytes, work: &mut Work, at: u32, side: Side) -> bool {
    let quoted = match work.network.is_ipv4 {
        true => quoted_ipv4(frame, at),
        false => quoted_ipv6(frame, at),
    };
    let Ok(quoted) = quoted else {
        return false;
    };
    work.quoted = quoted;
    let Ok(transport) = quoted_transport(frame, &work.quoted) else {
        return false;
    };
    work.quoted_transport = transport;
    let Some(ports) = header_ports(&transport) else {
        return false;
    };
    work.key = FlowKey::of(&work.quoted, ports, side).reversed(side);
    true
}

/// Gives an error and what it quotes the addresses by which its receiver knows them.
#[inline(never)]
fn error_written(frame: &mut impl Frame, work: &Work) -> bool {
    let Work {
        network,
        quoted,
        quoted_transport,
        row,
        ..
    } = work;
    let new = Ends {
        source: row.destination,
        destination: row.source,
        source_port: row.destination_port,
        destination_port: row.source_port,
    };
    let from = match network.source == quoted.destination {
        true => new.destination,
        false => network.source,
    };
    let to = match network.destination == quoted.source {
        true => new.source,
        false => network.destination,
    };
    rewrite_error(frame, network, &(from, to), quoted, quoted_transport, &new).is_some()
}

#[cfg(test)]
mod links_tests;
pub mod reached;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
