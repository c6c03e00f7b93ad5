//! Network policy at a pod's link: the maps behind [`agent_ebpf::policy::decide`], and what its verdicts do.

use agent_ebpf::abi::policy::{FlowKey, FlowRow, IdentityRow, PodRow, PolicyDrop, RuleKey};
use agent_ebpf::abi::{Address, DropReason, LinkIndex};
use agent_ebpf::packet::Malformed;
use agent_ebpf::policy::{Direction, Packet, Refusal, Tables, decide, look, rules_of};
use agent_ebpf::router::Work;
use aya_ebpf::btf_maps::lpm_trie::Key;

use crate::clock::coarse_ns;
use crate::events;
use crate::maps::{
    BY_POLICY, IDENTITIES, POLICY_DROPS, POLICY_FLOWS, POLICY_GENERATION, POLICY_PODS,
    POLICY_RULES, admits,
};
use crate::skb::Skb;

/// Whether policies select the pod at a link. Most pods' do not, and then nothing of a packet need be looked at.
#[inline(always)]
pub(crate) fn is_isolated(link: LinkIndex) -> bool {
    use agent_ebpf::abi::policy::PodRules;
    rules_of(&Maps, link, Maps.generation()) != PodRules::OPEN
}

/// Reads what policies look at. A function of its own, as the next: each then has most of a program's stack.
#[inline(never)]
pub(crate) fn examine(skb: &Skb, work: &mut Work, from_node: bool) -> Result<(), DropReason> {
    look(skb, &work.network, from_node, &mut work.packet).map_err(|Malformed| DropReason::Malformed)
}

/// Whether the policies of the pod at `link` let a packet pass.
#[inline(never)]
pub(crate) fn judge(
    packet: &Packet,
    link: LinkIndex,
    direction: Direction,
) -> Result<(), DropReason> {
    let Err(why) = decide(&Maps, link, direction, packet) else {
        return Ok(());
    };
    record(link, direction, packet, why);
    Err(match (why, direction) {
        (Refusal::Pending, _) => DropReason::PolicyPending,
        (Refusal::Fragment, _) => DropReason::PolicyFragment,
        (Refusal::NotAllowed, Direction::Ingress) => DropReason::PolicyIngress,
        (Refusal::NotAllowed, Direction::Egress) => DropReason::PolicyEgress,
    })
}

/// Tells people. What is too much, or finds the ring full, is counted as lost; among the drops all are.
#[inline(always)]
fn record(link: LinkIndex, direction: Direction, packet: &Packet, why: Refusal) {
    let now = coarse_ns();
    let room = match admits(BY_POLICY, now) {
        true => POLICY_DROPS.reserve(0),
        false => None,
    };
    let Some(mut record) = room else {
        events::lost();
        return;
    };
    record.write(PolicyDrop {
        time_ns: now,
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        pod: link,
        direction: direction as u32,
        protocol: packet.protocol,
        reason: why as u8,
        pad: [0; 2],
    });
    record.submit(0);
}

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn generation(&self) -> u32 {
        POLICY_GENERATION.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn pod(&self, link: LinkIndex) -> Option<PodRow> {
        // SAFETY: a row that is replaced while it is read says so by its key.
        unsafe { POLICY_PODS.get(&link) }.copied()
    }

    #[inline(always)]
    fn identity(&self, address: &Address) -> Option<IdentityRow> {
        IDENTITIES.get(&Key::new(128, *address)).copied()
    }

    #[inline(always)]
    fn allows(&self, key: &RuleKey) -> bool {
        POLICY_RULES.get(&Key::new(RuleKey::BITS, *key)).is_some()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<FlowRow> {
        // SAFETY: a row that gives way to another while it is read is one that would have been gone a moment later.
        unsafe { POLICY_FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FlowKey, row: &FlowRow) {
        // A conversation that finds no room is asked about again.
        let _ = POLICY_FLOWS.insert(key, row, 0);
    }

    #[inline(always)]
    fn forget(&self, key: &FlowKey) {
        // Another processor may have been first.
        let _ = POLICY_FLOWS.remove(key);
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        coarse_ns()
    }
}
