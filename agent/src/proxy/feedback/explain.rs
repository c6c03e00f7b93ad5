//! The feedback in words, for a person. Pure.

use std::fmt;
use std::time::Duration;

use agent_ebpf::abi::ServiceKey;

use super::super::policy::Target;
use super::controller::{Inputs, MOST};
use super::ejection::{Ejection, Reason};
use super::signals::{Reading, Signal};
use super::watch::Watch;

/// Why a port's share is what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explanation {
    pub share: f64,
    pub inputs: Inputs,
}

impl Watch {
    /// Why the share of a port is what it is; `None` where it has no traffic, or is not for the feedback to find.
    pub fn explain(&self, key: &ServiceKey) -> Option<Explanation> {
        let (feedback, _) = self.seen();
        Some(Explanation {
            share: feedback.share(key)?,
            inputs: feedback.inputs(key)?,
        })
    }

    /// Why a backend is out, and for how long still.
    pub fn ejection(&self, target: &Target) -> Option<(Ejection, Duration)> {
        let (feedback, now) = self.seen();
        let ejection = *feedback.ejected().get(target)?;
        Some((ejection, ejection.until.saturating_sub(now)))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.inputs.worst();
        let pressure = worst.pressure();
        let stays = format!(
            "{:.1} % of new connections stay on the node",
            self.share * 100.0
        );
        match pressure {
            0.0 if self.share >= MOST => write!(f, "{stays}: the local backends are comfortable"),
            0.0 => write!(
                f,
                "{stays}, more and more: the local backends are comfortable again"
            ),
            _ => write!(f, "{stays}; {worst}, pressure {pressure:.1}"),
        }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, limit) = self.signal.bounds();
        match self.signal {
            Signal::Slowness => write!(
                f,
                "connections live {:.1} times as long here as elsewhere, the limit is {limit:.1}",
                self.value
            ),
            signal => write!(
                f,
                "{} is {:.0} %, the limit is {:.0} %",
                signal.name(),
                self.value * 100.0,
                limit * 100.0
            ),
        }
    }
}

impl Signal {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Slowness => "slowness",
            Signal::AcceptQueue => "accept queue",
            Signal::CpuUse => "CPU use",
            Signal::Throttling => "CPU throttling",
            Signal::CpuPressure => "CPU pressure",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Failures { failed } => write!(f, "{failed} connections failed in a row"),
            Reason::Silent { unanswered } => {
                write!(
                    f,
                    "{unanswered} connections got no answer, other backends answer"
                )
            }
            Reason::Late { handshake } => write!(
                f,
                "handshakes take {} ms, far longer than other backends'",
                handshake.as_millis()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explanation(share: f64, slowness: f64) -> String {
        let inputs = Inputs {
            slowness,
            strain: Some(Reading {
                signal: Signal::Throttling,
                value: 0.5,
            })
            .filter(|_| slowness == 0.0),
            even: 0.5,
            lifetime: 0.1,
        };
        Explanation { share, inputs }.to_string()
    }

    #[test]
    fn the_reading_that_decides_is_in_the_sentence() {
        let table = [
            (
                0.99,
                1.0,
                "99.0 % of new connections stay on the node: the local backends are comfortable",
            ),
            (
                0.5,
                1.0,
                "50.0 % of new connections stay on the node, more and more: the local backends are comfortable again",
            ),
            (
                0.2,
                3.0,
                "20.0 % of new connections stay on the node; connections live 3.0 times as long here as elsewhere, the limit is 2.0, pressure 2.0",
            ),
            (
                0.99,
                0.0,
                "99.0 % of new connections stay on the node; CPU throttling is 50 %, the limit is 75 %, pressure 0.5",
            ),
        ];
        for (share, slowness, expected) in table {
            assert_eq!(explanation(share, slowness), expected);
        }
    }
}
