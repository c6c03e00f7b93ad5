//! Whether a pod's network policies let a packet pass.
//!
//! ```text
//! POLICY_PODS[link] ── not isolated in either direction ──────────────────────────────> pass
//!    │ the tables of both directions
//! POLICY_FLOWS[pod, peer, ports] ── a conversation that was allowed ──────────────────> pass
//!    │ none, or this packet opens one
//! this direction is not isolated, or the peer is the pod's own node ──────────────────> pass, and remember
//!    │
//! IDENTITIES[peer] ─> POLICY_RULES[table, identity, protocol, port] or [table, ANY, …] ─> pass, and remember
//!    │ no row
//!    └────────────────────────────────────────────────────────────────────────────────> refuse
//! ```
//!
//! Rows of `POLICY_PODS` and `IDENTITIES` say what they were before and what they are from a generation on. So the one
//! write of `POLICY_GENERATION` takes every pod and every address of the node from the old state to the new one, and no
//! packet meets a mixture.

use crate::abi::policy::{
    FLOW_FRAGMENTS_IN, FLOW_FRAGMENTS_OUT, FLOW_PORTS, FlowKey, FlowRow, Identity, IdentityRow,
    PodRow, PodRules, RuleKey, RuleTable,
};
use crate::abi::{Address, LinkIndex, Port, TCP};

mod look;
pub use look::look;

/// How often a row is read that is another key's.
const ATTEMPTS: u32 = 3;
/// After so long without a packet a conversation without connections (all but TCP) is over, in nanoseconds.
pub const IDLE_NS: u64 = 120_000_000_000;
/// A conversation's time is written anew when it is this old: most packets cost a lookup and no write.
pub const REFRESH_NS: u64 = 1_000_000_000;

/// Which way a packet goes, from the pod's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Direction {
    Ingress = 0,
    Egress = 1,
}

/// A packet, as far as policy looks at it. What a kind has nothing to say about is 0: in a program every value is written,
/// as the verifier lets none be read that was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    /// What the fragments of a packet have in common.
    pub identification: u32,
    /// The packet that an error is about.
    pub about: Conversation,
    pub kind: Kind,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// TCP: asks for a new connection.
    pub opens: bool,
    /// The first of several fragments.
    pub is_first_fragment: bool,
    /// The node's own network stack sent it: it came in through no link.
    pub from_node: bool,
}

/// What a packet is to policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A packet of a conversation, with ports where its protocol has some.
    Ports = 0,
    /// A fragment without ports; its first one decides.
    LaterFragment = 1,
    /// An ICMP error about a packet that went the other way.
    Error = 2,
    /// What two ends of a link need to find each other: neighbour discovery.
    Neighbours = 3,
}

/// Addresses and ports of the packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    /// `IPPROTO_*`.
    pub protocol: u8,
}

impl Conversation {
    pub const NONE: Self = Self {
        source: Address::from_words([0; 4]),
        destination: Address::from_words([0; 4]),
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
    };
}

/// The rows that a decision reads, and the one kind that it writes.
pub trait Tables {
    /// `POLICY_GENERATION`.
    fn generation(&self) -> u32;
    /// May be another pod's, when it is read while it is replaced: the decision checks it.
    fn pod(&self, link: LinkIndex) -> Option<PodRow>;
    /// That of the longest prefix; may be another prefix's in the same way.
    fn identity(&self, address: &Address) -> Option<IdentityRow>;
    /// Whether a prefix of the key is there.
    fn allows(&self, key: &RuleKey) -> bool;
    fn flow(&self, key: &FlowKey) -> Option<FlowRow>;
    fn remember(&self, key: &FlowKey, row: &FlowRow);
    fn forget(&self, key: &FlowKey);
    /// Monotonic clock.
    fn now_ns(&self) -> u64;
}

/// Why a packet does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// No policy that selects the pod allows it.
    NotAllowed = 0,
    /// The agent does not know the pod's policies yet.
    Pending = 1,
    /// A fragment that came before its first one, or whose first one was not allowed.
    Fragment = 2,
}

/// Decides on `packet`, which goes in `direction` over the link of a pod, and remembers conversations that may go on.
#[inline(always)]
pub fn decide(
    tables: &impl Tables,
    link: LinkIndex,
    direction: Direction,
    packet: &Packet,
) -> Result<(), Refusal> {
    let generation = tables.generation();
    let rules = rules_of(tables, link, generation);
    if rules == PodRules::OPEN || packet.source == packet.destination {
        return Ok(());
    }
    let (table, peer, pod_port, peer_port) = match direction {
        Direction::Ingress => (
            rules.ingress,
            packet.source,
            packet.destination_port,
            packet.source_port,
        ),
        Direction::Egress => (
            rules.egress,
            packet.destination,
            packet.source_port,
            packet.destination_port,
        ),
    };
    let key = FlowKey {
        pod: link,
        peer,
        pod_port,
        peer_port,
        protocol: packet.protocol,
        kind: FLOW_PORTS,
        pad: [0; 2],
    };
    match packet.kind {
        Kind::Neighbours => return Ok(()),
        Kind::LaterFragment => {
            let first = fragment_key(key, direction, packet.identification);
            return match table == RuleTable::OPEN || tables.flow(&first).is_some() {
                true => Ok(()),
                false => Err(refusal(table, Refusal::Fragment)),
            };
        }
        // What is about an allowed conversation belongs to it, whoever sends it: often a router on the way.
        Kind::Error
            if tables
                .flow(&quoted_key(link, direction, &packet.about))
                .is_some() =>
        {
            return Ok(());
        }
        Kind::Error | Kind::Ports => {}
    }
    let now_ns = tables.now_ns();
    let mut row = FlowRow {
        seen_ns: now_ns,
        generation,
        opened: direction as u32,
    };
    let known = match packet.opens {
        true => None,
        false => tables.flow(&key),
    };
    let is_known = known.is_some();
    if let Some(flow) = known
        && goes_on(&flow, packet.protocol, direction, generation, now_ns)
    {
        if now_ns.saturating_sub(flow.seen_ns) < REFRESH_NS && !packet.is_first_fragment {
            return Ok(());
        }
        row.generation = flow.generation;
        row.opened = flow.opened;
    } else {
        let may = table == RuleTable::OPEN
            || packet.from_node
            || may_pass(
                tables,
                table,
                &peer,
                packet.protocol,
                packet.destination_port,
                generation,
            );
        if !may {
            if is_known {
                tables.forget(&key);
            }
            return Err(refusal(table, Refusal::NotAllowed));
        }
    }
    tables.remember(&key, &row);
    if packet.is_first_fragment {
        let fragments = fragment_key(key, direction, packet.identification);
        tables.remember(&fragments, &row);
    }
    Ok(())
}

/// The rules that hold for a pod at a generation.
#[inline(always)]
pub fn rules_of(tables: &impl Tables, link: LinkIndex, generation: u32) -> PodRules {
    for _ in 0..ATTEMPTS {
        let Some(row) = tables.pod(link) else {
            return PodRules::OPEN;
        };
        if row.link == link {
            return match generation >= row.since {
                true => row.now,
                false => row.before,
            };
        }
    }
    PodRules::PENDING
}

/// The identity of an address at a generation.
#[inline(always)]
pub fn identity_of(tables: &impl Tables, address: &Address, generation: u32) -> Identity {
    for _ in 0..ATTEMPTS {
        let Some(row) = tables.identity(address) else {
            return Identity::ANY;
        };
        if covers(&row.prefix, row.bits, address) {
            return match generation >= row.since {
                true => row.now,
                false => row.before,
            };
        }
    }
    Identity::ANY
}

/// Whether `address` begins with the first `bits` of `prefix`.
#[inline(always)]
pub fn covers(prefix: &Address, bits: u32, address: &Address) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (prefix.words(), address.words());
    let pair =
        |high: u32, low: u32| u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low));
    let (high, low) = (pair(a ^ e, b ^ f), pair(c ^ g, d ^ h));
    match bits {
        0 => true,
        1..64 => high >> (64 - bits) == 0,
        64 => high == 0,
        65..128 => high == 0 && low >> (128 - bits) == 0,
        _ => high == 0 && low == 0,
    }
}

/// Whether the rules of `table` allow a packet to or from `peer`.
#[inline(always)]
fn may_pass(
    tables: &impl Tables,
    table: RuleTable,
    peer: &Address,
    protocol: u8,
    port: Port,
    generation: u32,
) -> bool {
    let identity = identity_of(tables, peer, generation);
    if identity.is_node() {
        return true;
    }
    let allowed = |identity| tables.allows(&RuleKey::new(table, identity, protocol, port));
    (identity != Identity::ANY && allowed(identity)) || allowed(Identity::ANY)
}

/// Whether a conversation that is remembered lets this packet pass.
#[inline(always)]
fn goes_on(
    flow: &FlowRow,
    protocol: u8,
    direction: Direction,
    generation: u32,
    now_ns: u64,
) -> bool {
    // A connection goes on until its ends close it, whatever becomes of the rules.
    if protocol == TCP {
        return true;
    }
    // Of the others, each packet that goes the way of the first is asked about again after a change of the rules.
    let is_reply = flow.opened != direction as u32;
    now_ns.saturating_sub(flow.seen_ns) < IDLE_NS && (is_reply || flow.generation == generation)
}

/// Why, in the words of a pod's rules.
#[inline(always)]
fn refusal(table: RuleTable, why: Refusal) -> Refusal {
    match table {
        RuleTable::PENDING => Refusal::Pending,
        _ => why,
    }
}

#[inline(always)]
fn fragment_key(key: FlowKey, direction: Direction, identification: u32) -> FlowKey {
    let [a, b, c, d] = identification.to_be_bytes();
    FlowKey {
        pod_port: [a, b],
        peer_port: [c, d],
        kind: match direction {
            Direction::Ingress => FLOW_FRAGMENTS_IN,
            Direction::Egress => FLOW_FRAGMENTS_OUT,
        },
        ..key
    }
}

/// The conversation that an error is about. The error goes against the packet that it quotes: one that comes to the pod
/// quotes what the pod sent.
#[inline(always)]
fn quoted_key(link: LinkIndex, direction: Direction, quoted: &Conversation) -> FlowKey {
    let sent = (quoted.source_port, quoted.destination_port);
    let (peer, (pod_port, peer_port)) = match direction {
        Direction::Ingress => (quoted.destination, sent),
        Direction::Egress => (quoted.source, (sent.1, sent.0)),
    };
    FlowKey {
        pod: link,
        peer,
        pod_port,
        peer_port,
        protocol: quoted.protocol,
        kind: FLOW_PORTS,
        pad: [0; 2],
    }
}

/// Records of drops that a CPU makes in a [`Window`], at most: who floods a closed door neither fills the ring nor keeps
/// anybody busy.
pub const MOST_RECORDS: u64 = 100;
/// How long a window is.
pub const WINDOW_NS: u64 = 100_000_000;

/// What has been recorded lately.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub since_ns: u64,
    pub records: u64,
}

impl Window {
    /// Whether one more may be recorded now. Counts it if so.
    #[inline(always)]
    pub fn admits(&mut self, now_ns: u64) -> bool {
        if now_ns.wrapping_sub(self.since_ns) >= WINDOW_NS {
            *self = Self {
                since_ns: now_ns,
                records: 0,
            };
        }
        let admits = self.records < MOST_RECORDS;
        if admits {
            self.records += 1;
        }
        admits
    }
}

#[cfg(test)]
mod tests;
