//! One backend's counters and load, smoothed. Pure.

use std::time::Duration;

use super::lifetimes::{Lifetimes, Memory};
use super::signals::{Counters, Load, Reading, Signal};
use crate::runtime::cpu::CpuCounters;

/// Time constant in seconds over which a local backend's load is smoothed.
const SMOOTHING: f64 = 1.0;

/// Of its limit. More is another container's counter, not this one's.
const MOST_USED: f64 = 2.0;

/// Local backends have the traffic: they show at once how they are.
const HERE: Memory = Memory {
    fades: 1.0,
    enough: 1.0,
    longest: 1.0,
};

/// What is remembered of one backend from look to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge {
    last: Option<(Duration, Counters)>,
    lifetimes: Lifetimes,
    weighed: Option<Duration>,
    cpu: Option<CpuCounters>,
    readings: Vec<Reading>,
}

/// What one look at the counters showed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// What was added since the last look.
    pub(super) counted: Counters,
    /// Sockets that are open.
    pub(super) active: u64,
    /// How long ago the last look was, in seconds; 0 at the first.
    pub(super) dt: f64,
}

impl Gauge {
    /// A look at the counters. The first shows nothing but where they stand.
    pub(super) fn count(&mut self, counters: Counters, now: Duration) -> Seen {
        let (at, before) = self
            .last
            .replace((now, counters))
            .unwrap_or((now, counters));
        Seen {
            counted: counters.since(&before),
            active: counters.active(),
            dt: now.saturating_sub(at).as_secs_f64(),
        }
    }

    /// The next look is the first again.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Lifetimes of the connections, with what was seen of them.
    pub(super) fn lifetimes(&mut self, seen: &Seen) -> &Lifetimes {
        let (ended, dt) = (seen.counted.closes, seen.dt);
        let open = seen.active as f64 * dt;
        self.lifetimes.observe(ended, open, dt, &HERE);
        &self.lifetimes
    }

    /// A look at the load. The first shows nothing but where it stands.
    pub(super) fn weigh(&mut self, load: &Load, now: Duration) {
        let at = self.weighed.replace(now).unwrap_or(now);
        let dt = now.saturating_sub(at).as_secs_f64();
        if dt <= 0.0 {
            self.cpu = load.cpu;
            return;
        }
        let before = std::mem::replace(&mut self.cpu, load.cpu);
        let fill = load.accept_queue.map(|queue| queue.fill());
        let cpu = load.cpu.zip(before);
        let used = cpu.and_then(|(now, before)| {
            let used = now.used.saturating_sub(before.used).as_secs_f64();
            Some((used / dt / now.limit?).min(MOST_USED))
        });
        let throttled = cpu.map(|(now, before)| {
            let periods = now.throttled.saturating_sub(before.throttled) as f64;
            (periods * now.period.as_secs_f64() / dt).min(1.0)
        });
        let stalled = cpu.and_then(|(now, before)| {
            let stalled = now.stalled?.saturating_sub(before.stalled?);
            Some(stalled.as_secs_f64() / dt)
        });
        self.smooth(Signal::AcceptQueue, fill, dt);
        self.smooth(Signal::CpuUse, used, dt);
        self.smooth(Signal::Throttling, throttled, dt);
        self.smooth(Signal::CpuPressure, stalled, dt);
    }

    /// What is worst of the load; `None` where nothing is known.
    pub(super) fn strain(&self) -> Option<Reading> {
        let readings = self.readings.iter().copied();
        readings.max_by(|a, b| a.pressure().total_cmp(&b.pressure()))
    }

    fn smooth(&mut self, signal: Signal, value: Option<f64>, dt: f64) {
        let at = self
            .readings
            .iter()
            .position(|known| known.signal == signal);
        match (at, value) {
            (Some(at), Some(value)) => {
                let known = &mut self.readings[at].value;
                *known += (value - *known) * (1.0 - (-dt / SMOOTHING).exp());
            }
            // It begins at rest: one look says little.
            (None, Some(_)) => self.readings.push(Reading { signal, value: 0.0 }),
            (Some(at), None) => drop(self.readings.swap_remove(at)),
            (None, None) => {}
        }
    }
}
