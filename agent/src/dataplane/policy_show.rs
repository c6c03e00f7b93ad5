//! Rows of the maps of network policy, as text for people.

use agent_ebpf::abi::policy::{
    FLOW_FRAGMENTS_IN, FLOW_FRAGMENTS_OUT, FlowKey, FlowRow, Identity, IdentityRow, PodRow,
    PodRules, RuleKey, RuleTable,
};
use agent_ebpf::abi::{LinkIndex, Member};
use agent_ebpf::policy::Direction;
use aya::maps::lpm_trie::Key;

use super::MapRow;
use super::inspect::{Show, endpoint, row};
use crate::policy::prefix::Prefix;
use crate::policy::types::protocol_name;

impl Show for PodRow {
    fn show(&self) -> String {
        let Self {
            since, now, before, ..
        } = self;
        format!(
            "from generation {since} on {}, before that {}",
            rules(now),
            rules(before)
        )
    }
}

fn rules(rules: &PodRules) -> String {
    let (ingress, egress) = (table(rules.ingress), table(rules.egress));
    format!("ingress {ingress} egress {egress}")
}

fn table(table: RuleTable) -> String {
    match table {
        RuleTable::OPEN => "open".to_owned(),
        RuleTable::PENDING => "pending".to_owned(),
        RuleTable::CLOSED => "closed".to_owned(),
        RuleTable(number) => format!("table {number}"),
    }
}

fn identity(identity: Identity) -> String {
    match identity {
        Identity::ANY => "any".to_owned(),
        Identity(number) if identity.is_node() => format!("node {}", number & !Identity::NODE),
        Identity(number) => number.to_string(),
    }
}

impl Show for IdentityRow {
    fn show(&self) -> String {
        let (now, before) = (identity(self.now), identity(self.before));
        let since = self.since;
        format!("from generation {since} on identity {now}, before that {before}")
    }
}

impl Show for Key<RuleKey> {
    fn show(&self) -> String {
        let (key, bits) = (self.data(), self.prefix_len());
        let (of, who) = (
            u32::from_be_bytes(key.table),
            Identity(u32::from_be_bytes(key.identity)),
        );
        let what = match bits.checked_sub(RuleKey::PROTOCOL_BITS) {
            None => "everything".to_owned(),
            Some(0) => format!("all of {}", protocol_name(key.protocol)),
            Some(bits) => {
                let first = u16::from_be_bytes(key.port);
                let last = first | u16::MAX.checked_shr(bits).unwrap_or(0);
                let ports = match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                format!("{ports}/{}", protocol_name(key.protocol))
            }
        };
        format!("table {of} identity {}: {what}", identity(who))
    }
}

impl Show for FlowKey {
    fn show(&self) -> String {
        let (link, protocol) = (self.pod.0, protocol_name(self.protocol));
        match self.kind {
            FLOW_FRAGMENTS_IN => format!("link {link}: fragments from {}", self.peer),
            FLOW_FRAGMENTS_OUT => format!("link {link}: fragments to {}", self.peer),
            _ => format!(
                "link {link} port {} with {} {protocol}",
                u16::from_be_bytes(self.pod_port),
                endpoint(self.peer, self.peer_port)
            ),
        }
    }
}

impl Show for FlowRow {
    fn show(&self) -> String {
        let who = match self.opened == Direction::Egress as u32 {
            true => "pod",
            false => "peer",
        };
        let seconds = self.seen_ns / 1_000_000_000;
        format!(
            "opened by the {who}, allowed at generation {}, last seen {seconds} s after boot",
            self.generation
        )
    }
}

/// The row of a pod.
pub fn pod_row(found: &PodRow) -> MapRow {
    row(
        agent_ebpf::abi::maps::POLICY_PODS,
        &LinkIndex(found.link.0),
        found,
    )
}

/// The row of a rule.
pub fn rule_row(key: RuleKey, bits: u32) -> MapRow {
    row(
        agent_ebpf::abi::maps::POLICY_RULES,
        &Key::new(bits, key),
        &Member(0),
    )
}

/// The row of a prefix.
pub fn identity_row(prefix: &Prefix, found: &IdentityRow) -> MapRow {
    row(
        agent_ebpf::abi::maps::IDENTITIES,
        &Key::new(prefix.bits, prefix.address),
        found,
    )
}
