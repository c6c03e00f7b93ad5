//! ICMP errors about translated packets, which are translated with them. Pure.

use super::{
    Connections, ELSEWHERE, Fate, Handover, Neighbours, Node, Work, answers_elsewhere,
    leaves_by_another, untranslated,
};
use crate::abi::{CONNECTION_FORMER, DropReason, FlowKey, PodEntry, Side};
use crate::flow::header_ports;
use crate::packet::{Bytes, Transport, quoted_ipv4, quoted_ipv6, quoted_transport};
use crate::rewrite::{Ends, Frame, rewrite_error};

/// An ICMP error about a packet that was translated here, or one of its answers.
#[inline(always)]
pub(super) fn error<W>(world: &mut W, work: &mut Work, side: Side) -> Fate
where
    W: Frame + Connections + Node + Neighbours,
{
    /// `ICMP_REDIRECT`
    const REDIRECT: u8 = 5;
    let Transport::Error { kind, quoted_at } = work.transport else {
        return Fate::Pass;
    };
    if !read_quoted(world, work, quoted_at, side) || !world.row(&work.key, &mut work.row, None) {
        return untranslated(world, work, side);
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
