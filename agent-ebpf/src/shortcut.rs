//! Packets that go on past the node's routes: the kernel's side of [`agent_ebpf::router`].
//!
//! ```text
//! pod ───▶ kn_pod_out ───┬─ bpf_redirect_peer ───▶ eth0 of a pod on this node
//!                        └─ bpf_redirect_neigh ──▶ uplink, and kn_uplink_out there
//! uplink ▶ kn_uplink_in ─── bpf_redirect_peer ───▶ eth0 of a pod on this node
//! ```
//!
//! The program at the other end of the way is passed over, so what it would have done is done here: the receiving pod's
//! policies, its counters. What the kernel would do besides passing the packet on with one hop less is left to it.

use agent_ebpf::abi::{Address, DropReason, LinkIndex};
use agent_ebpf::packet::{Bytes as _, Network};
use agent_ebpf::policy::Direction;
use agent_ebpf::router::{Work, is_plain, is_unicast, one_hop_later};
use aya_ebpf::bindings::BPF_F_RECOMPUTE_CSUM;
use aya_ebpf::helpers::generated::bpf_redirect_peer;

use crate::enforce::{examine, is_isolated, judge};
use crate::maps::{POD_ADDRESSES, UPLINKS, has_fast_paths};
use crate::packets::dropped;
use crate::pod::memory;
use crate::route::{link_back, next_hop, send};
use crate::skb::Skb;
use crate::traffic;
use crate::untranslated::is_translating;

/// Looks whether a packet from the link `from` can be handed to a pod of this node; all else is the kernel's.
#[inline(always)]
pub(crate) fn find(skb: &Skb, work: &mut Work, from: LinkIndex) -> bool {
    has_fast_paths()
        && is_plain(&work.network)
        && skb.is_for_us()
        && is_pods(work)
        && work.target.link != from
}

/// Whether an address is that of a pod of this node.
#[inline(always)]
pub(crate) fn is_own_pods(address: &Address) -> bool {
    POD_ADDRESSES.get_ptr(address).is_some()
}

/// Hands a packet that came in by an uplink to the pod of this node whose it is; none where that is not for a program to
/// do. Of a source that the node would not answer by that link, the kernel may know better.
#[inline(always)]
pub(crate) fn from_uplink(skb: &Skb, network: &Network) -> Option<i32> {
    match is_own_pods(&network.destination) {
        true => to_own_pod(skb, network),
        false => None,
    }
}

/// The same where it is known that the packet is for a pod of this node.
#[inline(always)]
pub(crate) fn to_own_pod(skb: &Skb, network: &Network) -> Option<i32> {
    if !has_fast_paths() {
        return None;
    }
    let work = memory()?;
    work.network = *network;
    into_pod(skb, work)
}

#[inline(never)]
fn into_pod(skb: &Skb, work: &mut Work) -> Option<i32> {
    let link = skb.link();
    if skb.has_vlan()
        || !find(skb, work, LinkIndex(link))
        || link_back(skb, &work.network, work.target.link.0) != link
    {
        return None;
    }
    let target = work.target.link;
    if is_isolated(target) {
        let judged = examine(skb, work, false)
            .and_then(|()| judge(&work.packet, target, Direction::Ingress));
        if let Err(reason) = judged {
            return Some(dropped(reason));
        }
    }
    traffic::received(target, skb);
    Some(deliver(skb, work).unwrap_or_else(dropped))
}

/// Sends a packet of the pod at the link `from` on by an uplink; none for all that is the kernel's.
#[inline(never)]
pub(crate) fn to_uplink(skb: &Skb, work: &Work, from: LinkIndex) -> Option<i32> {
    let network = &work.network;
    if !has_fast_paths()
        || !is_plain(network)
        || !is_unicast(&network.destination)
        || !skb.is_for_us()
    {
        return None;
    }
    let mut hop = next_hop(skb, network, from.0)?;
    // The programs there see to what leaves the node.
    UPLINKS.get_ptr(LinkIndex(hop.link))?;
    Some(match one_less(skb, network) {
        Some(()) => send(&mut hop),
        None => dropped(DropReason::Malformed),
    })
}

/// Whether a pod of this node has the packet's destination.
#[inline(always)]
fn is_pods(work: &mut Work) -> bool {
    let address = &work.network.destination;
    let Some(row) = POD_ADDRESSES.get_ptr(address) else {
        return false;
    };
    let target = &mut work.target;
    // SAFETY: a row's memory stays mapped while the program runs. The key in it is read last: who gets the memory writes
    // it first.
    unsafe {
        target.link = (&raw const (*row).link).read_volatile();
        target.pod_mac = (&raw const (*row).pod_mac).read_volatile();
        target.node_mac = (&raw const (*row).node_mac).read_volatile();
        target.address = (&raw const (*row).address).read_volatile();
    }
    // What a pod's program has to translate back must pass it.
    target.address == *address && !is_translating(target.link.0)
}

/// Hands the packet over.
#[inline(never)]
pub(crate) fn deliver(skb: &Skb, work: &Work) -> Result<i32, DropReason> {
    let target = &work.target;
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (target.pod_mac, target.node_mac);
    let written = match work.network.is_ipv4 {
        // At once, with what stands between: a call costs more than what it writes.
        true => skb.near(12).and_then(|between: [u8; 10]| {
            let [m, n, o, p, q, r, s, t, u, v] = between;
            let [w, x, y, z] = one_hop_later(skb, &work.network)?;
            let start = [
                a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z,
            ];
            skb.write(0, &start, 0)
        }),
        false => one_less(skb, &work.network)
            .and_then(|()| skb.write(0, &[a, b, c, d, e, f, g, h, i, j, k, l], 0)),
    };
    written.ok_or(DropReason::Malformed)?;
    // SAFETY: a plain helper call.
    Ok(unsafe { bpf_redirect_peer(target.link.0, 0) as i32 })
}

/// Takes a hop from the packet's lifetime.
#[inline(always)]
fn one_less(skb: &Skb, network: &Network) -> Option<()> {
    match network.is_ipv4 {
        // The checksum makes up for the lifetime, so a device's sum over the packet stays.
        true => skb.write(network.at + 8, &one_hop_later(skb, network)?, 0),
        false => skb.write(
            network.at + 7,
            &[network.hops - 1],
            u64::from(BPF_F_RECOMPUTE_CSUM),
        ),
    }
}
