//! How long connections live, from what the counters show every now and then. Pure.
//!
//! The time that all connections together were open, by the number that ended: what a connection that is opened now may
//! expect, also while a queue builds up or empties. Where little was seen this is vague, so it is drawn towards the mean
//! over all backends.

/// How much must have been seen of a backend to be believed as much as the mean over all.
const WEIGHT_OF_ALL: f64 = 8.0;

/// How long what was seen counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Memory {
    /// Time constant in seconds.
    pub(super) fades: f64,
    /// Until so many newer connections have ended, it fades no faster than with the time constant `longest`.
    pub(super) enough: f64,
    pub(super) longest: f64,
}

/// The connections of one or several backends, lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Lifetimes {
    /// Time that they were open, all added up, in seconds.
    open: f64,
    /// How many ended.
    ended: f64,
}

impl Lifetimes {
    /// In the last `dt` seconds so many ended, and all together were open for so many seconds.
    pub(super) fn observe(&mut self, ended: u64, open: f64, dt: f64, memory: &Memory) {
        let ended = ended as f64;
        let slowly = (ended / memory.enough).max(dt / memory.longest);
        let keep = (-slowly.min(dt / memory.fades)).exp();
        self.open = self.open * keep + open;
        self.ended = self.ended * keep + ended;
    }

    /// Both together.
    pub(super) fn with(self, other: Lifetimes) -> Lifetimes {
        Lifetimes {
            open: self.open + other.open,
            ended: self.ended + other.ended,
        }
    }

    /// The mean lifetime in seconds; 0 without a connection.
    pub(super) fn mean(&self) -> f64 {
        self.open / self.ended.max(1.0)
    }

    /// The mean lifetime, drawn towards `all` (seconds) as if a few connections of that length had been seen as well, at
    /// looks `dt` seconds apart. Connections shorter than that are seldom seen open, so more of them are needed to tell.
    fn mean_near(&self, all: f64, dt: f64) -> f64 {
        let ended = WEIGHT_OF_ALL.max(WEIGHT_OF_ALL * dt / all);
        (self.open + ended * all) / (self.ended + ended)
    }
}

/// How many times as long as `elsewhere` connections live `here`: 1 where nothing tells them apart.
pub(super) fn slowness(here: &Lifetimes, elsewhere: &Lifetimes, dt: f64) -> f64 {
    let all = here.with(*elsewhere).mean();
    if all <= 0.0 {
        return 1.0;
    }
    here.mean_near(all, dt) / elsewhere.mean_near(all, dt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DT: f64 = 0.1;
    const MEMORY: Memory = Memory {
        fades: 2.0,
        enough: 32.0,
        longest: 60.0,
    };

    /// So many connections a second of that length, for a minute.
    fn steady(rate: f64, length: f64) -> Lifetimes {
        let mut lifetimes = Lifetimes::default();
        let mut ended = 0.0_f64;
        for _ in 0..600 {
            let before = ended.floor();
            ended += rate * DT;
            lifetimes.observe(
                (ended.floor() - before) as u64,
                rate * length * DT,
                DT,
                &MEMORY,
            );
        }
        lifetimes
    }

    #[test]
    fn the_ratio_of_lifetimes_is_told_where_both_have_traffic() {
        for (here, elsewhere) in [(0.05, 0.01), (2.0, 0.5), (0.01, 0.01), (0.01, 0.03)] {
            let ratio = slowness(&steady(1000.0, here), &steady(1000.0, elsewhere), DT);
            let expected = here / elsewhere;
            assert!(
                (ratio / expected - 1.0).abs() < 0.2,
                "{ratio}, not {expected}"
            );
        }
    }

    #[test]
    fn without_traffic_elsewhere_nothing_tells_them_apart() {
        let none = Lifetimes::default();
        assert_eq!(slowness(&none, &none, DT), 1.0);
        assert!((slowness(&steady(100.0, 5.0), &none, DT) - 1.0).abs() < 0.01);
        assert!(
            slowness(&steady(100.0, 1.0), &steady(0.05, 0.01), DT) < 2.0,
            "one or two"
        );
        assert!(
            slowness(&steady(100.0, 1.0), &steady(1.0, 0.01), DT) > 2.0,
            "dozens"
        );
    }

    #[test]
    fn a_queue_that_builds_up_is_seen_before_its_connections_end() {
        let mut here = steady(100.0, 0.01);
        let elsewhere = steady(100.0, 0.01);
        for look in 1..=5 {
            here.observe(1, f64::from(look) * 9.0 * DT, DT, &MEMORY);
        }
        assert!(slowness(&here, &elsewhere, DT) > 2.0);
    }
}
