//! What a program says of a packet, and the count of those dropped.

use agent_ebpf::abi::DropReason;
use agent_ebpf::guard::is_foreign_pod;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;

use crate::maps::{DROPS, POD_RANGES};
use crate::skb::Skb;

/// Goes on: to the next program of the link if there is one, else into the network stack or out of the link.
pub(crate) const PASS: i32 = TC_ACT_UNSPEC;

/// Drops the packet, and counts why.
#[inline(always)]
pub(crate) fn dropped(reason: DropReason) -> i32 {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own row.
        unsafe { *count += 1 };
    }
    TC_ACT_SHOT
}

/// Whether a packet from another machine passes itself off as one of a pod of this node. Not inlined: what comes after it
/// needs the stack.
#[inline(never)]
pub(crate) fn is_forged(ctx: &TcContext) -> bool {
    POD_RANGES
        .get(0)
        .is_some_and(|own| is_foreign_pod(&Skb::of(ctx), own))
}
