//! What becomes of a packet at an uplink before the network stack has seen it. Pure.
//!
//! ```text
//!   client ──▶ service ═▶ node:port ──▶ backend      both steps of [`crate::nat`] at once, where the backend is on another node
//!   backend ──▶ node:port ═▶ service ──▶ client      and back
//!   client ──▶ service ──▶ backend's node            as it is, where that answers the client itself
//! ```
//!
//! What only passes through the node is sent on at once; so is told off who is not served. All else is the stack's,
//! unchanged, and so is a packet of the former that is out of the ordinary: the programs on the stack's way make of each
//! what would have been made of it here, as they read and write the same rows.

use crate::abi::{
    CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_SERVICE, CONNECTION_UNCHANGED, DropReason,
    FlowKey, Side, TCP, UDP,
};
use crate::checksum::Sum;
use crate::flow::Fragments;
use crate::nat::{
    Connections, Node, REFUSED, Step, Work, answers_client, ends, from_node, identify, is_known,
    mind_former, open, opens, read, to_service,
};
use crate::outside::OutsideTables;
use crate::packet::{Bytes, Network, Part, Transport};
use crate::rewrite::{Frame, checksum_offset, rewrite, spend_hop};
use crate::router::is_unicast;

/// The ways out of the node, as a packet that comes in meets them.
pub trait Roads {
    /// The packet passes itself off as one of a pod of this node.
    fn is_forged(&self) -> bool;
    /// The frame is for the node's hardware address on the link.
    fn is_for_node(&self) -> bool;
    /// Looks for the link and the neighbour by which `packet` goes on, once it is `flow`'s; out by the link `by`, where that
    /// is not 0. False when it cannot be sent there from here. From then on that link is the one that [`Node`] speaks of.
    fn take(&mut self, packet: &Network, flow: &FlowKey, by: u32) -> bool;
    /// The way that was taken leads to where the frame came from.
    fn leads_back(&self) -> bool;
    /// Gives the frame the hardware addresses of the way that was taken. `None` when that cannot be done.
    fn address(&mut self) -> Option<()>;
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It is the stack's, unchanged.
    Stack,
    /// It leaves by the way that was taken, translated.
    Onward,
    Drop(DropReason),
}

/// Translates and sends on a packet that comes in by an uplink and leaves by one.
#[inline(always)]
pub fn forward<W>(world: &mut W, work: &mut Work) -> Course
where
    W: Frame + Fragments + Connections + Node + OutsideTables + Roads,
{
    if !read(world, work) || !is_plain(world, work) || !identify(world, work, Side::IN) {
        return Course::Stack;
    }
    let mut counted = Counted::Nowhere;
    let course = course(world, work, &mut counted);
    if course == Course::Stack && counted != Counted::Nowhere {
        uncount(world, work, counted);
    }
    course
}

/// In which rows the packet is counted: that of its flow as it came, and that of its flow as it leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Nowhere,
    Coming,
    ComingAndLeaving,
}

/// The programs on the stack's way will count the packet in the same rows.
#[inline(never)]
fn uncount(rows: &impl Connections, work: &Work, counted: Counted) {
    rows.uncount(&work.coming, work.used.bytes);
    if counted == Counted::ComingAndLeaving {
        rows.uncount(&work.leaving, work.used.bytes);
    }
}

#[inline(always)]
fn course<W>(world: &mut W, work: &mut Work, counted: &mut Counted) -> Course
where
    W: Frame + Fragments + Connections + Node + OutsideTables + Roads,
{
    if !is_known(world, work) {
        let opened = match to_service(world, work) {
            Step::Next => {
                mind_former(world, work);
                open(world, work)
            }
            other => other,
        };
        match opened {
            Step::Next => {}
            // The program on the stack's way counts it for the service, too.
            Step::Done | Step::Drop(DropReason::NoBackend) => return Course::Stack,
            Step::Drop(reason) => return Course::Drop(reason),
        }
    }
    *counted = Counted::Coming;
    work.coming = work.key;
    let is_refused = work.row.backend == REFUSED && work.row.kind & CONNECTION_SERVICE != 0;
    if is_refused || work.row.kind & (CONNECTION_FORMER | CONNECTION_UNCHANGED) != 0 {
        return Course::Stack;
    }
    work.key = work.key.after(&work.row, Side::OUT);
    if work.row.kind & CONNECTION_DIRECT != 0 {
        if !takes(world, work, 0) || world.leads_back() {
            return Course::Stack;
        }
        return match handed_over(world, work) {
            Some(()) => Course::Onward,
            None => Course::Drop(DropReason::Malformed),
        };
    }
    work.leaving = work.key;
    if !is_known(world, work) {
        // One that has no row and begins nothing is on its way to a pod of this node, mostly.
        if !opens(work) || !takes(world, work, 0) {
            return Course::Stack;
        }
        let opened = match from_node(world, work) {
            Step::Next => open(world, work),
            other => other,
        };
        match opened {
            Step::Next => {}
            Step::Done => return Course::Stack,
            Step::Drop(reason) => return Course::Drop(reason),
        }
    } else {
        *counted = Counted::ComingAndLeaving;
        let mut by = 0;
        if answers_client(&work.row) {
            by = work.row.link;
            work.key = work.key.after(&work.row, Side::OUT);
        }
        if !takes(world, work, by) {
            return Course::Stack;
        }
    }
    match sent(world, work) {
        Some(()) => Course::Onward,
        None => Course::Drop(DropReason::Malformed),
    }
}

#[inline(always)]
fn takes(world: &mut impl Roads, work: &Work, by: u32) -> bool {
    world.take(&work.network, &work.key, by)
}

#[inline(never)]
fn sent<W: Frame + Roads>(world: &mut W, work: &Work) -> Option<()> {
    rewrite(world, &work.network, &work.transport, &ends(&work.row))?;
    spend_hop(world, &work.network)?;
    world.address()
}

/// To a node that answers for the service itself the packet goes as it is.
#[inline(never)]
fn handed_over<W: Frame + Roads>(world: &mut W, work: &Work) -> Option<()> {
    spend_hop(world, &work.network)?;
    world.address()
}

/// Whether nothing about the packet asks for the stack: a whole one of TCP or UDP, without options, for this node, with hops
/// to spend, from where somebody can be and is, complete and with right checksums as far as that is for the node to say.
#[inline(never)]
fn is_plain<W: Bytes + Roads>(world: &W, work: &Work) -> bool {
    let Work {
        network, transport, ..
    } = work;
    let header = if network.is_ipv4 { 20 } else { 40 };
    matches!(transport, Transport::Ports { .. })
        && matches!(network.protocol, TCP | UDP)
        && network.part == Part::Whole
        && network.transport_at == network.at + header
        && network.hops > 1
        // The kernel takes packets from other addresses for nobody's.
        && is_unicast(&network.source)
        && world.is_for_node()
        && !world.is_forged()
        && states_length(world, network)
        && (!network.is_ipv4 || header_is_right(world, network))
        && is_finished(world, network)
}

/// Whether the packet says how long it is. Only what the kernel itself has put together may leave that open, and no link
/// brings it.
#[inline(always)]
fn states_length(bytes: &impl Bytes, network: &Network) -> bool {
    let at = network.at + if network.is_ipv4 { 2 } else { 4 };
    bytes.read::<2>(at).is_some_and(|length| length != [0; 2])
}

/// A router that does not look lets a broken header go where nobody meant it to.
#[inline(always)]
fn header_is_right(bytes: &impl Bytes, network: &Network) -> bool {
    let Some(header) = bytes.read::<20>(network.at) else {
        return false;
    };
    let mut sum = 0;
    for n in 0..5 {
        let n = 4 * n;
        let word = [header[n], header[n + 1], header[n + 2], header[n + 3]];
        sum += u64::from(u32::from_ne_bytes(word));
    }
    Sum::of_native(sum).folded() == [0xff, 0xff]
}

/// Whether the transport's checksum is there. What a machine sends to itself or to a guest has only the addresses' part of
/// it, for a device to complete that it never meets; the stack knows, here nothing else tells. One checksum in 65,536
/// happens to look like that.
#[inline(always)]
fn is_finished(bytes: &impl Bytes, network: &Network) -> bool {
    let Some(at) = checksum_offset(network.protocol) else {
        return false;
    };
    let Some(checksum) = bytes.read::<2>(network.transport_at + at) else {
        return false;
    };
    let length = network.end - network.transport_at;
    let (from, to) = (network.source.words(), network.destination.words());
    // What stands before an IPv4 address adds 0xffff, which is nothing.
    let mut addresses = 0;
    for n in 0..4 {
        addresses += u64::from(from[n]) + u64::from(to[n]);
    }
    let sum = Sum::of_native(addresses)
        .add([0, network.protocol])
        .add((length as u16).to_be_bytes());
    sum.folded() != checksum
}

#[cfg(test)]
mod tests;
