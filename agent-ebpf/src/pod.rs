//! The node's end of a pod's link: what leaves the pod, and what goes to it.

use agent_ebpf::abi::{DropReason, LinkIndex};
use agent_ebpf::guard::{self, Sent};
use agent_ebpf::packet::{Carried, ETHERNET_LENGTH, Malformed, carried, ipv4, ipv6};
use agent_ebpf::policy::Direction;
use agent_ebpf::router::Work;
use aya_ebpf::programs::TcContext;

use crate::enforce::{examine, is_isolated, judge};
use crate::maps::{POD_SCRATCH, PODS};
use crate::packets::{PASS, dropped};
use crate::shortcut;
use crate::skb::Skb;
use crate::traffic;
use crate::untranslated::{self, Stage, concerns, is_translating};

/// A frame that a pod sends.
#[inline(always)]
pub(crate) fn leaving(ctx: &TcContext) -> i32 {
    settled(left(ctx))
}

/// A frame to a pod.
#[inline(always)]
pub(crate) fn arriving(ctx: &TcContext) -> i32 {
    settled(arrived(ctx))
}

#[inline(always)]
fn settled(verdict: Result<i32, DropReason>) -> i32 {
    match verdict {
        Ok(verdict) => verdict,
        Err(reason) => dropped(reason),
    }
}

#[inline(always)]
fn left(ctx: &TcContext) -> Result<i32, DropReason> {
    let skb = Skb::of(ctx);
    let link = LinkIndex(skb.link());
    let Some(work) = memory() else {
        return Ok(PASS);
    };
    if !is_packet(&skb, link, work)? {
        return Ok(PASS);
    }
    if concerns(&skb, &work.network) {
        // Goes on there, and comes back only where there is no such program.
        untranslated::go_on(ctx, Stage::Dialled);
    }
    let handed = shortcut::find(&skb, work, link);
    let is_judged = is_isolated(link);
    let is_judged_there = handed && is_isolated(work.target.link);
    if is_judged || is_judged_there {
        examine(&skb, work, false)?;
    }
    if is_judged {
        judge(&work.packet, link, Direction::Egress)?;
    }
    traffic::sent(link, &skb);
    if !handed {
        return Ok(shortcut::to_uplink(&skb, work, link).unwrap_or(PASS));
    }
    if is_judged_there {
        judge(&work.packet, work.target.link, Direction::Ingress)?;
    }
    traffic::received(work.target.link, &skb);
    shortcut::deliver(&skb, work)
}

#[inline(always)]
fn arrived(ctx: &TcContext) -> Result<i32, DropReason> {
    let skb = Skb::of(ctx);
    let link = LinkIndex(skb.link());
    // Nobody keeps a pod from itself.
    if skb.came_by() != skb.link() && is_isolated(link) {
        let Some(work) = memory() else {
            return Ok(PASS);
        };
        if !is_ip(&skb, work)? {
            return Ok(PASS);
        }
        // What comes in through no link was sent by the node itself.
        examine(&skb, work, skb.came_by() == 0)?;
        judge(&work.packet, link, Direction::Ingress)?;
    }
    traffic::received(link, &skb);
    if skb.came_by() != skb.link() && is_translating(skb.link()) {
        untranslated::go_on(ctx, Stage::Answered);
    }
    Ok(PASS)
}

/// Memory for what is known of a packet.
#[inline(always)]
pub(crate) fn memory() -> Option<&'static mut Work> {
    let memory = POD_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's own, and no other program of this object runs before this one ends. All zeros, which it begins with,
    // is a value of each field.
    Some(unsafe { &mut *memory.cast::<Work>() })
}

/// Reads a packet that the pod at `link` sends; false for what stays on its link.
#[inline(never)]
fn is_packet(skb: &Skb, link: LinkIndex, work: &mut Work) -> Result<bool, DropReason> {
    // SAFETY: a row is read once; that of a link that is gone is no other pod's, as the kernel does not use its index again.
    let Some(pod) = (unsafe { PODS.get(link) }) else {
        return Err(DropReason::UnknownPod);
    };
    if skb.has_vlan() {
        return Err(DropReason::NotIp);
    }
    match guard::sent(skb, pod)? {
        Sent::OnLink => Ok(false),
        Sent::Packet(network) => {
            work.network = network;
            Ok(true)
        }
    }
}

/// Reads a packet; false for what is not IP and stays on the link: the node itself made it.
#[inline(never)]
pub(crate) fn is_ip(skb: &Skb, work: &mut Work) -> Result<bool, DropReason> {
    let network = match carried(skb) {
        Ok(Carried::Ipv4) => ipv4(skb, ETHERNET_LENGTH),
        Ok(Carried::Ipv6) => ipv6(skb, ETHERNET_LENGTH),
        _ => return Ok(false),
    };
    work.network = network.map_err(|Malformed| DropReason::Malformed)?;
    Ok(true)
}
