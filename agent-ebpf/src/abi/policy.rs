//! Keys and values of the maps of network policy. How they fit together is in [`crate::policy`].

use super::{Address, LinkIndex, Port};

/// Value of `POLICY_PODS`, whose keys are as those of `PODS`: which rules hold for a pod, as of which generation. A pod
/// without a row is not isolated.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRow {
    /// The row's own key: the kernel may hand the memory of a replaced row to another one while a program still reads it.
    pub link: LinkIndex,
    /// The first value of `POLICY_GENERATION` at which `now` holds. Before that `before` does.
    pub since: u32,
    pub now: PodRules,
    pub before: PodRules,
}

/// A pod's rules, by direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRules {
    pub ingress: RuleTable,
    pub egress: RuleTable,
}

impl PodRules {
    /// No policy selects the pod.
    pub const OPEN: Self = Self {
        ingress: RuleTable::OPEN,
        egress: RuleTable::OPEN,
    };
    /// It is not known yet which policies select the pod.
    pub const PENDING: Self = Self {
        ingress: RuleTable::PENDING,
        egress: RuleTable::PENDING,
    };
}

/// Names rows of `POLICY_RULES`, or says what holds without any. A table's rows are written before a pod names it, and are
/// as they are until no pod does.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleTable(pub u32);

impl RuleTable {
    /// Not isolated: everything may pass.
    pub const OPEN: Self = Self(0);
    /// Nothing may pass, because the policies are not known yet.
    pub const PENDING: Self = Self(1);
    /// Nothing may pass.
    pub const CLOSED: Self = Self(2);
    /// The first that has rows.
    pub const FIRST: Self = Self(16);
}

/// What the keys of `POLICY_RULES` are prefixes of. A row is there where a rule allows; its value says no more.
///
/// 64 bits allow every protocol, 72 every port of one, and fewer than 88 a range of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    /// In network order, as the trie compares from the first bit on.
    pub table: [u8; 4],
    /// The same.
    pub identity: [u8; 4],
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// Of whoever is connected to.
    pub port: Port,
    /// Never compared; the kernel keeps the value behind it, which has to be aligned.
    pub pad: u8,
}

impl RuleKey {
    /// Bits of the key that say which table and which identity.
    pub const PEER_BITS: u32 = 64;
    /// Those and the protocol.
    pub const PROTOCOL_BITS: u32 = Self::PEER_BITS + 8;
    /// All that are compared.
    pub const BITS: u32 = Self::PROTOCOL_BITS + 16;

    #[inline(always)]
    pub const fn new(table: RuleTable, identity: Identity, protocol: u8, port: Port) -> Self {
        Self {
            table: table.0.to_be_bytes(),
            identity: identity.0.to_be_bytes(),
            protocol,
            port,
            pad: 0,
        }
    }
}

/// Everything that the policies of this node tell apart about an address, as a number.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub u32);

impl Identity {
    /// Of addresses that no policy names. A rule for it is one for everybody.
    pub const ANY: Self = Self(0);
    /// This bit is set in the identities of the node's own addresses.
    pub const NODE: u32 = 1 << 31;

    /// Whether it is one of the node's own addresses.
    #[inline(always)]
    pub const fn is_node(self) -> bool {
        self.0 & Self::NODE != 0
    }
}

/// Value of `IDENTITIES`, whose keys are prefixes of addresses: whose they are, as of which generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityRow {
    /// The row's own prefix, for the reason that [`PodRow::link`] gives. Bits behind it are 0.
    pub prefix: Address,
    /// How many bits of it count; an IPv4 prefix has 96 more than people write.
    pub bits: u32,
    /// The first value of `POLICY_GENERATION` at which `now` holds. Before that `before` does.
    pub since: u32,
    pub now: Identity,
    pub before: Identity,
}

/// Key of `POLICY_FLOWS`: a conversation, seen from the pod that it is allowed for.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    pub pod: LinkIndex,
    pub peer: Address,
    /// For ICMP echo both are its identifier; for fragments both together are their identification.
    pub pod_port: Port,
    pub peer_port: Port,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// `FLOW_*`.
    pub kind: u8,
    pub pad: [u8; 2],
}

/// Packets with ports.
pub const FLOW_PORTS: u8 = 0;
/// The fragments of one packet that comes to the pod; those that leave it are of [`FLOW_FRAGMENTS_OUT`].
pub const FLOW_FRAGMENTS_IN: u8 = 1;
pub const FLOW_FRAGMENTS_OUT: u8 = 2;

/// Value of `POLICY_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowRow {
    /// `bpf_ktime_get_ns` of its latest packet, or a little before.
    pub seen_ns: u64,
    /// `POLICY_GENERATION` when the rules allowed it.
    pub generation: u32,
    /// The [`crate::policy::Direction`] of its first packet.
    pub opened: u32,
}

/// A record of `POLICY_DROPS`: a packet that a pod's policies did not let pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyDrop {
    /// `bpf_ktime_get_ns`.
    pub time_ns: u64,
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    pub pod: LinkIndex,
    /// The [`crate::policy::Direction`] that is not allowed.
    pub direction: u32,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// The [`crate::policy::Refusal`].
    pub reason: u8,
    pub pad: [u8; 2],
}

#[cfg(feature = "user")]
mod user {
    use super::*;
    macro_rules! pod {
        ($($type:ty),+ $(,)?) => { $(
            // SAFETY: `repr(C)`, no implicit padding and valid for any bit pattern; the tests check the sizes.
            unsafe impl aya::Pod for $type {}
        )+ };
    }
    pod!(
        PodRow,
        RuleKey,
        Identity,
        IdentityRow,
        FlowKey,
        FlowRow,
        PolicyDrop
    );
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<PodRow>(), 4 + 4 + 8 + 8);
        assert_eq!(size_of::<RuleKey>() as u32, RuleKey::BITS / 8 + 1);
        assert_eq!(size_of::<IdentityRow>(), 16 + 4 + 4 + 4 + 4);
        assert_eq!(size_of::<FlowKey>(), 4 + 16 + 2 + 2 + 1 + 1 + 2);
        assert_eq!(size_of::<FlowRow>(), 8 + 4 + 4);
        assert_eq!(
            size_of::<PolicyDrop>(),
            8 + 16 + 16 + 2 + 2 + 4 + 4 + 1 + 1 + 2
        );
    }
}
