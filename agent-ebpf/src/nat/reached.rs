//! Pods that somebody outside reaches at their own addresses, by a route of his own. Pure.
//!
//! To all but the cluster a pod speaks with the node's address, but not when it answers: who dialled the pod would not
//! recognize it. What comes in is the only sign that tells answers from what a pod begins, so it leaves rows by which both
//! directions go as they are. They age and give way as those of other connections do.

use super::begin::add_answers;
use super::{Added, Connections, Node, REFUSED, Work};
use super::{answers, look_after, opens, time_of};
use crate::abi::{CONNECTION_UNCHANGED, Connection, TCP};
use crate::packet::{TCP_FIN, TCP_RST};

/// A packet, whose flow has no row that holds for it, comes in by an uplink for a pod's own address. It goes on whatever this
/// finds: where there is no room for rows, the answers will be taken for the pod's own.
#[inline(never)]
pub(crate) fn reached<W>(world: &W, work: &mut Work, has_row: bool)
where
    W: Connections + Node,
{
    let is_over = work.key.protocol == TCP && work.row.seen & (TCP_FIN | TCP_RST) != 0;
    if has_row && !(is_over && opens(work)) {
        look_after(world, work);
        return;
    }
    // An echo needs no rows: what answers it says so itself.
    if !opens(work) || !world.masquerades(&work.key.source) {
        return;
    }
    let now_ns = time_of(world, work);
    let key = &work.key;
    work.row = Connection {
        key_hash: key.hash(),
        link: world.link(),
        last_seen_ns: now_ns,
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        backend: REFUSED,
        service_id: 0,
        kind: CONNECTION_UNCHANGED,
        seen: work.used.flags,
        pad: [0; 2],
        bytes: work.used.bytes.into(),
        since_ns: now_ns,
    };
    answers(work);
    // Where the pod speaks to that port already, under the node's address, it was first.
    if add_answers(world, work) == Added::Added {
        let _ = world.put(&work.key, &work.row);
    }
}

#[cfg(test)]
mod tests;
