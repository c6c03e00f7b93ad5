//! What is known of a service's backends at one moment, as plain values.

use agent_ebpf::abi::BackendStats;

use crate::dataplane::Backlog;
use crate::runtime::cpu::CpuCounters;

/// One backend's counters since it was first used, as seen from this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub opens: u64,
    pub closes: u64,
    /// Connections that were refused, timed out or given up before they stood. TCP only, as the next two.
    pub failures: u64,
    pub handshakes: u64,
    /// All handshakes together.
    pub handshake_ns: u64,
}

impl From<BackendStats> for Counters {
    fn from(stats: BackendStats) -> Self {
        Self {
            opens: stats.opens,
            closes: stats.closes,
            failures: stats.failures,
            handshakes: stats.handshakes,
            handshake_ns: stats.handshake_ns,
        }
    }
}

impl Counters {
    /// Sockets that are open now.
    pub fn active(&self) -> u64 {
        self.opens.saturating_sub(self.closes)
    }

    /// What was counted since `before`; nothing where the counters began anew.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            opens: self.opens.saturating_sub(before.opens),
            closes: self.closes.saturating_sub(before.closes),
            failures: self.failures.saturating_sub(before.failures),
            handshakes: self.handshakes.saturating_sub(before.handshakes),
            handshake_ns: self.handshake_ns.saturating_sub(before.handshake_ns),
        }
    }
}

/// How a backend on this node is, of itself. `None` is what could not be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    pub accept_queue: Option<Backlog>,
    pub cpu: Option<CpuCounters>,
}

/// The highest pressure.
const WORST: f64 = 5.0;

/// What speaks against keeping connections on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Local connections live longer than those to the service's other backends: the ratio of the mean lifetimes.
    Slowness,
    /// Fill of the listener's accept queue.
    AcceptQueue,
    /// CPU time used, of the limit.
    CpuUse,
    /// CPU periods in which the limit was used up, of all.
    Throttling,
    /// Share of the time in which some task of the pod waited for a CPU.
    CpuPressure,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 5] = [
        Signal::Slowness,
        Signal::AcceptQueue,
        Signal::CpuUse,
        Signal::Throttling,
        Signal::CpuPressure,
    ];

    /// Up to the first value all is well; the second is as much as is put up with. `docs/locality.md` says why.
    pub(super) fn bounds(self) -> (f64, f64) {
        match self {
            Signal::Slowness => (1.0, 2.0),
            Signal::AcceptQueue => (0.0, 0.2),
            Signal::CpuUse => (0.7, 0.95),
            Signal::Throttling => (0.25, 0.75),
            Signal::CpuPressure => (0.5, 0.9),
        }
    }

    /// How near a value is to what is put up with: 0 comfortable, 1 the limit, 5 at most.
    pub fn pressure(self, value: f64) -> f64 {
        let (comfortable, limit) = self.bounds();
        ((value - comfortable) / (limit - comfortable)).clamp(0.0, WORST)
    }
}

/// One signal's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    pub signal: Signal,
    pub value: f64,
}

impl Reading {
    /// [`Signal::pressure`] of the value.
    pub fn pressure(&self) -> f64 {
        self.signal.pressure(self.value)
    }
}
