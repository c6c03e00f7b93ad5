//! What passed the pods' links.

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::abi::pods::{Passed, PodTraffic};

use crate::maps::POD_TRAFFIC;
use crate::skb::Skb;

/// Counts what the pod at `link` sent.
#[inline(always)]
pub(crate) fn sent(link: LinkIndex, skb: &Skb) {
    count(link, skb, |row| &mut row.sent);
}

/// Counts what goes to the pod at `link`.
#[inline(always)]
pub(crate) fn received(link: LinkIndex, skb: &Skb) {
    count(link, skb, |row| &mut row.received);
}

#[inline(always)]
fn count(link: LinkIndex, skb: &Skb, which: fn(&mut PodTraffic) -> &mut Passed) {
    if let Some(row) = POD_TRAFFIC.get_ptr_mut(link) {
        // SAFETY: this CPU's own row, which outlives the program's run.
        let passed = which(unsafe { &mut *row });
        passed.packets += 1;
        passed.bytes += u64::from(skb.frame_length());
    }
}
