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

mod begin;
mod errors;
#[cfg(test)]
mod links_tests;
pub mod reached;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod world;

use crate::abi::{
    Address, BackendId, CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_REPLY, CONNECTION_SERVICE,
    CONNECTION_UNCHANGED, Connection, DropReason, FlowKey, PodEntry, Side, TCP, UDP,
};
use crate::flow::{Fragments, ports};
use crate::outside::OutsideTables;
use crate::packet::{
    Bytes, Carried, ETHERNET_LENGTH, Network, Part, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Transport,
    carried, ipv4, ipv6, transport,
};
use crate::rewrite::{Ends, Frame, rewrite};
use crate::router::is_unicast;

pub use begin::PORT_ATTEMPTS;
pub(crate) use begin::{from_node, open, to_service};
use errors::error;
pub use world::{Added, Connections, Handover, Neighbours, Node, Use};

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
    /// The flows of a packet before the network stack: as it came, and as it leaves but for answers' last step.
    pub coming: FlowKey,
    pub leaving: FlowKey,
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
    if matches!(work.transport, Transport::Error { .. }) {
        return error(world, work, side);
    }
    let is_identified = identify(world, work, side);
    let has_row = is_identified && has_row(world, work);
    if has_row && still_holds(world, work) {
        look_after(world, work);
    } else {
        // What is for a pod's own address is nobody's to translate. Most of what comes in is some connection's: that is looked
        // up first.
        if side == Side::IN && world.has_pod(&work.network.destination) {
            if is_identified {
                reached::reached(world, work, has_row);
            }
            return Fate::Reached;
        }
        if !is_identified || work.network.part == Part::Later {
            return match !is_identified && has_lost_first(world, &work.network, side) {
                true => Fate::Drop(DropReason::Fragment),
                false => untranslated(world, work, side),
            };
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

/// A packet that is not translated. It goes on as it is, unless that would show a pod's address to the world.
#[inline(never)]
pub(crate) fn untranslated(node: &impl Node, work: &Work, side: Side) -> Fate {
    // Who answers an echo is known to who asked.
    let answers = matches!(
        work.transport,
        Transport::Echo {
            is_request: false,
            ..
        }
    );
    let shows_pod = side == Side::OUT
        && !answers
        && node.is_pods()
        && node.masquerades(&work.network.destination);
    match shows_pod {
        true => Fate::Drop(DropReason::NotMasqueraded),
        false => Fate::Pass,
    }
}

/// Whether a later fragment, whose first was not seen, may be a service's at an address that is no machine's. One to the node
/// itself is the stack's, which delivers nothing of which the first fragment does not come.
#[inline(never)]
fn has_lost_first(node: &impl Node, network: &Network, side: Side) -> bool {
    let to = &network.destination;
    side == Side::IN
        && network.part == Part::Later
        && matches!(network.protocol, TCP | UDP)
        && is_unicast(to)
        && !node.is_node_address(to)
        && node.own_address(network.is_ipv4) != *to
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
fn leaves_by_another(world: &mut (impl Node + Neighbours), work: &mut Work) -> bool {
    if world.is_tunnel() {
        return false;
    }
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
    if !has_row(world, work) || !still_holds(world, work) {
        return false;
    }
    look_after(world, work);
    true
}

/// Whether there is a row for the packet's flow at all.
#[inline(always)]
fn has_row(connections: &impl Connections, work: &mut Work) -> bool {
    connections.row(&work.key, &mut work.row, Some(&mut work.used))
}

/// When the packet came.
#[inline(always)]
fn time_of(node: &impl Node, work: &mut Work) -> u64 {
    if work.used.now_ns == 0 {
        work.used.now_ns = node.now_ns();
    }
    work.used.now_ns
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
    work.used.now_ns = 0;
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
pub(crate) fn still_holds<W>(world: &W, work: &mut Work) -> bool
where
    W: Connections + OutsideTables,
{
    if work.row.kind & CONNECTION_UNCHANGED != 0 {
        return work.key.protocol != TCP || !opens(work);
    }
    if work.row.kind & CONNECTION_REPLY != 0 || !opens(work) {
        return true;
    }
    if work.key.protocol == TCP && was_over(world, work) {
        return false;
    }
    let row = &work.row;
    let is_ours = row.backend != REFUSED && row.kind & CONNECTION_FORMER == 0;
    row.kind & CONNECTION_SERVICE == 0 || is_ours && world.backend(row.backend).is_some()
}

/// Whether either end had closed the connection whose addresses and ports another has now.
#[inline(never)]
fn was_over(connections: &impl Connections, work: &mut Work) -> bool {
    const OVER: u8 = TCP_FIN | TCP_RST;
    work.back_key = work.key.answers(&work.row);
    work.row.seen & OVER != 0
        || connections.row(&work.back_key, &mut work.other, None) && work.other.seen & OVER != 0
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
