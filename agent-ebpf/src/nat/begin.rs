//! Packets of no known connection: to whom a new one goes, under which addresses and ports. Pure.

use super::{
    Added, Connections, Fate, Node, REFUSED, Step, Work, answers, ends, opens, time_of,
    untranslated,
};
use crate::abi::{
    Address, CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_LOCAL, CONNECTION_REPLY,
    CONNECTION_SERVICE, Connection, DropReason, FlowKey, PodEntry, Side, TCP, UDP,
};
use crate::flow::stir;
use crate::outside::{Choice, Client, OutsideTables, choose};
use crate::packet::{ICMP, ICMPV6};

/// Ports that are tried for a connection before it is refused.
pub const PORT_ATTEMPTS: u32 = 16;
/// Ports below are never given to others.
const FIRST_FREE_PORT: u16 = 1024;

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
    let is_ipv4 = work.network.is_ipv4;
    let mut dialled = key.dialled();
    let mut is_node_port = false;
    if !world.is_service(&dialled) {
        if !may_be_node_port(world, key) {
            return Step::Done;
        }
        is_node_port = true;
        dialled.address = unspecified(is_ipv4);
    }
    let now_ns = time_of(world, work);
    let key = &work.key;
    let client = Client {
        address: key.source,
        port: key.source_port,
        now_ns,
    };
    let mut kind = CONNECTION_SERVICE;
    let (service_id, backend, address, port) = match choose(world, &client, &dialled) {
        Choice::NotService => return Step::Done,
        Choice::NotServed => return Step::Drop(DropReason::SourceRange),
        Choice::Backend {
            service_id,
            id,
            entry,
            is_direct,
            is_local,
        } => {
            if is_local {
                kind |= CONNECTION_LOCAL;
            }
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
        last_seen_ns: now_ns,
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
        since_ns: now_ns,
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
        // A client's packet to a backend on another node, which would else answer it directly. Of a service whose backends
        // here see their clients, no backend is on another.
        (backend, service_id) = (work.other.backend, work.other.service_id);
    } else {
        return Step::Done;
    }
    let own = world.own_address(work.network.is_ipv4);
    let port = u16::from_be_bytes(work.key.source_port);
    let is_echo = matches!(work.key.protocol, ICMP | ICMPV6);
    // What answers an echo has no identifier of its own to be known by.
    if own == PodEntry::NONE || is_echo && port == 0 {
        return match untranslated(world, work, Side::OUT) {
            Fate::Drop(reason) => Step::Drop(reason),
            _ => Step::Done,
        };
    }
    let now_ns = time_of(world, work);
    let key = &work.key;
    work.row = Connection {
        key_hash: 0,
        link: world.link(),
        last_seen_ns: now_ns,
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
        since_ns: now_ns,
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
    work.row.key_hash = work.key.hash();
    // Who finds all ports taken tries others when he sends again.
    let seed = stir(work.row.key_hash, work.used.now_ns as u32);
    // The verifier follows a counter as wide as a place on the stack.
    for attempt in 0..u64::from(PORT_ATTEMPTS) {
        if attempt > 0 || !work.keeps_port {
            let offset = stir(seed, attempt as u32) % u32::from(work.port_count).max(1);
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
pub(super) fn add_answers(connections: &impl Connections, work: &mut Work) -> Added {
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
