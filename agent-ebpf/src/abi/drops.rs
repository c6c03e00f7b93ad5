//! Why a packet goes no further.

/// Why a program dropped a packet: the index of its counter in `DROPS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Headers that contradict themselves, or end too early.
    Malformed = 0,
    /// From a pod's link: neither IP nor ARP.
    NotIp = 1,
    /// From a pod: a source address that is not the pod's.
    Spoofed = 2,
    /// On a pod's link of which the agent has not said whose it is.
    UnknownPod = 3,
    /// To a service, from a source that `loadBalancerSourceRanges` does not have.
    SourceRange = 4,
    /// To a service without a backend, at an address from which the node could not refuse it.
    NoBackend = 5,
    /// A new connection for which no port was free.
    NoPort = 6,
    /// A new connection for which `CONNECTIONS` had no row.
    TableFull = 7,
    /// A router's advice about an address that the packet had on this node only.
    Redirect = 8,
    /// Of a connection whose backend's node answers its client itself, and cannot be reached.
    NoWay = 9,
    /// From another machine: a source address in this node's pods' ranges, whose packets come from pods' links only.
    ForeignPod = 10,
    /// From a pod to the world: of a protocol, or a kind of message, by which answers would not find the pod if it had the
    /// node's address, or by a link at which the node has none.
    NotMasqueraded = 11,
    /// A later fragment that may be a service's, and whose first one was not seen before it.
    Fragment = 12,
    /// To a pod that is isolated, and no policy allows it.
    PolicyIngress = 20,
    /// From a pod that is isolated, and no policy allows it.
    PolicyEgress = 21,
    /// To or from a pod whose policies the agent does not know yet.
    PolicyPending = 22,
    /// A fragment to or from an isolated pod, whose first one was not seen, or not allowed.
    PolicyFragment = 23,
}

/// Counters in `DROPS`: room for reasons to come.
pub const DROP_COUNTERS: u32 = 32;

impl DropReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Malformed,
        Self::NotIp,
        Self::Spoofed,
        Self::UnknownPod,
        Self::SourceRange,
        Self::NoBackend,
        Self::NoPort,
        Self::TableFull,
        Self::Redirect,
        Self::NoWay,
        Self::ForeignPod,
        Self::NotMasqueraded,
        Self::Fragment,
        Self::PolicyIngress,
        Self::PolicyEgress,
        Self::PolicyPending,
        Self::PolicyFragment,
    ];

    /// Its name for people and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotIp => "not-ip",
            Self::Spoofed => "spoofed",
            Self::UnknownPod => "unknown-pod",
            Self::SourceRange => "source-range",
            Self::NoBackend => "no-backend",
            Self::NoPort => "no-port",
            Self::TableFull => "table-full",
            Self::Redirect => "redirect",
            Self::NoWay => "no-way",
            Self::ForeignPod => "foreign-pod",
            Self::NotMasqueraded => "not-masqueraded",
            Self::Fragment => "fragment",
            Self::PolicyIngress => "policy-ingress",
            Self::PolicyEgress => "policy-egress",
            Self::PolicyPending => "policy-pending",
            Self::PolicyFragment => "policy-fragment",
        }
    }
}
