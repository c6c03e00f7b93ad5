//! One backend's counters and load, smoothed. Pure.

use super::lifetimes::{Lifetimes, Memory};
use super::signals::{Counters, Cpu, Load, Reading, Signal};

/// Time constant in seconds over which a local backend's load is smoothed.
const SMOOTHING: f64 = 1.0;

/// Local backends have the traffic: they show at once how they are.
const HERE: Memory = Memory {
    fades: 1.0,
    enough: 1.0,
    longest: 1.0,
};

/// What is remembered of one backend from look to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Gauge {
    counters: Option<Counters>,
    /// What the last look added.
    pub(super) seen: Counters,
    pub(super) lifetimes: Lifetimes,
    cpu: Option<Cpu>,
    readings: Vec<Reading>,
}

impl Gauge {
    /// A look at the counters, `dt` seconds after the last.
    pub(super) fn count(&mut self, counters: Counters, dt: f64) {
        let before = self.counters.replace(counters).unwrap_or(counters);
        self.seen = counters.since(&before);
        self.lifetimes
            .observe(self.seen.closes, counters.active(), dt, &HERE);
    }

    /// Sockets that are open.
    pub(super) fn active(&self) -> u64 {
        self.counters.map_or(0, |counters| counters.active())
    }

    /// A look at the load, `dt` seconds after the last.
    pub(super) fn weigh(&mut self, load: &Load, dt: f64) {
        let before = std::mem::replace(&mut self.cpu, load.cpu);
        let queue = load.accept_queue.filter(|queue| queue.room > 0);
        let fill = queue.map(|queue| f64::from(queue.waiting) / f64::from(queue.room));
        let cpu = load.cpu.zip(before);
        let used = cpu.and_then(|(now, before)| {
            let used = now.used.saturating_sub(before.used).as_secs_f64();
            Some(used / dt / now.limit?)
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
