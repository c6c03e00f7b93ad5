//! The share of new connections that stays on the node, from how its backends are. Pure: time is passed in.
//!
//! ```text
//! pressure    0 ────────── HOLD ────── 1 ────────── 5
//! the share   rises, slower   stays      falls, faster
//! ```

use super::signals::{Reading, Signal};

/// The most that stays on the node; the rest keeps the picture of the others fresh.
pub const MOST: f64 = 0.99;
/// The least: fewer than the hundredth that a 99th percentile shows.
pub const LEAST: f64 = 0.005;
/// Below this pressure the share rises, above 1 it falls.
const HOLD: f64 = 0.7;
/// How fast the share falls for each 1 of pressure above 1: by this power of e a second.
const FALL: f64 = 0.3;
/// Below an even spread it falls at this part of the pace.
const BELOW_EVEN: f64 = 0.1;
/// How fast the odds of staying rise without pressure: by this power of e a second …
const RISE: f64 = 0.12;
/// … and how much faster for each 1 of pressure above 1 that the other backends are under, compared with the local ones.
const RETURN: f64 = 1.0;

/// The share of one service port.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Controller {
    share: f64,
}

/// What the share is moved by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Inputs {
    /// The worst of the local backends compared with the others.
    pub slowness: f64,
    /// What else is worst, of itself.
    pub strain: Option<Reading>,
    /// The share with which all ready backends get the same.
    pub even: f64,
    /// How long a connection to another backend lives, in seconds: comparisons are no newer than that.
    pub lifetime: f64,
}

impl Inputs {
    /// The reading that decides.
    pub fn worst(&self) -> Reading {
        let slowness = Reading {
            signal: Signal::Slowness,
            value: self.slowness,
        };
        match self.strain {
            Some(strain) if strain.pressure() > slowness.pressure() => strain,
            _ => slowness,
        }
    }
}

impl Controller {
    /// One whose share is this now.
    pub fn starting_at(share: f64) -> Self {
        Self {
            share: share.clamp(LEAST, MOST),
        }
    }

    /// The share, `dt` seconds later. A strained backend brings it down to an even spread and no further: elsewhere it may
    /// be no better. Below that only the comparison counts.
    pub fn step(&mut self, inputs: &Inputs, dt: f64) -> f64 {
        let compared = Signal::Slowness.pressure(inputs.slowness);
        let strained = inputs.strain.map_or(0.0, |reading| reading.pressure());
        let worst = compared.max(strained);
        let even = inputs.even.clamp(LEAST, MOST);
        // A comparison of connections that live for long is old news: whoever acts on it faster overshoots.
        let pace = dt / inputs.lifetime.max(1.0);
        let next = if compared > 1.0 && self.share > even {
            (self.share * fallen(compared, pace)).max(even)
        } else if compared > 1.0 {
            self.share * fallen(compared, pace * BELOW_EVEN)
        } else if strained > 1.0 && self.share > even {
            (self.share * fallen(strained, dt)).max(even)
        } else if worst < HOLD {
            risen(self.share, worst, inputs.slowness, pace)
        } else if compared < HOLD && self.share < even {
            risen(self.share, compared, inputs.slowness, pace).min(even)
        } else {
            self.share
        };
        self.share = next.clamp(LEAST, MOST);
        self.share
    }
}

/// The part of a share that is left.
fn fallen(pressure: f64, pace: f64) -> f64 {
    (-FALL * (pressure - 1.0) * pace).exp()
}

/// A share whose odds have risen: slowly near both ends.
fn risen(share: f64, pressure: f64, slowness: f64, pace: f64) -> f64 {
    let elsewhere = Signal::Slowness.pressure(1.0 / slowness);
    let speed = RISE * (1.0 - pressure / HOLD) + RETURN * (elsewhere - 1.0).max(0.0);
    let odds = share / (1.0 - share) * (speed * pace).exp();
    odds / (1.0 + odds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: f64 = 0.1;

    fn calm() -> Inputs {
        Inputs {
            slowness: 1.0,
            strain: None,
            even: 0.25,
            lifetime: 0.01,
        }
    }

    fn throttled(value: f64) -> Option<Reading> {
        let signal = Signal::Throttling;
        Some(Reading { signal, value })
    }

    /// The share after so many seconds of the same.
    fn after(controller: &mut Controller, inputs: &Inputs, seconds: u32) -> f64 {
        for _ in 0..seconds * 10 {
            controller.step(inputs, TICK);
        }
        controller.share
    }

    #[test]
    fn in_comfort_the_share_stays_at_its_most() {
        let mut controller = Controller::starting_at(MOST);
        assert_eq!(after(&mut controller, &calm(), 100), MOST);
    }

    #[test]
    fn a_slow_backend_loses_its_traffic_and_gets_it_back() {
        let mut controller = Controller::starting_at(MOST);
        let slow = Inputs {
            slowness: 10.0,
            ..calm()
        };
        assert!(after(&mut controller, &slow, 2) < 0.3);
        assert!(after(&mut controller, &slow, 60) < 0.01);
        assert!(
            after(&mut controller, &calm(), 10) < 0.1,
            "it returns gently"
        );
        assert_eq!(after(&mut controller, &calm(), 110), MOST);
    }

    #[test]
    fn strain_alone_leads_to_an_even_spread_and_no_further() {
        let mut controller = Controller::starting_at(MOST);
        let strained = Inputs {
            strain: throttled(1.0),
            ..calm()
        };
        assert_eq!(after(&mut controller, &strained, 60), 0.25);
        controller.share = LEAST;
        assert_eq!(
            after(&mut controller, &strained, 120),
            0.25,
            "and back to it"
        );
    }

    #[test]
    fn between_hold_and_the_limit_nothing_moves() {
        for share in [LEAST, 0.2, 0.6, MOST] {
            let mut controller = Controller { share };
            let held = Inputs {
                slowness: 1.85,
                ..calm()
            };
            assert_eq!(after(&mut controller, &held, 10), share);
        }
    }

    #[test]
    fn where_the_others_are_slower_it_returns_faster() {
        let others = Inputs {
            slowness: 0.2,
            ..calm()
        };
        let mut quick = Controller { share: 0.05 };
        let mut slow = quick;
        assert!(after(&mut quick, &others, 3) > 4.0 * after(&mut slow, &calm(), 3));
    }

    #[test]
    fn connections_that_live_long_make_it_slow() {
        let long = Inputs {
            slowness: 10.0,
            lifetime: 60.0,
            ..calm()
        };
        let mut controller = Controller::starting_at(MOST);
        assert!(after(&mut controller, &long, 5) > 0.85);
    }

    #[test]
    fn the_worse_reading_is_named() {
        let both = Inputs {
            slowness: 1.2,
            strain: throttled(0.9),
            ..calm()
        };
        assert_eq!(both.worst().signal, Signal::Throttling);
        assert_eq!(calm().worst().signal, Signal::Slowness);
    }

    proptest::proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_moves_as_the_pressure_says(
            share in LEAST..=MOST,
            slowness in 0.0_f64..50.0,
            throttling in 0.0_f64..1.0,
            even in 0.0_f64..1.0,
            lifetime in 0.0_f64..1000.0,
            dt in 0.01_f64..5.0,
        ) {
            let mut controller = Controller { share };
            let strain = throttled(throttling);
            let inputs = Inputs { slowness, strain, even, lifetime };
            let next = controller.step(&inputs, dt);
            proptest::prop_assert!((LEAST..=MOST).contains(&next));
            let worst = inputs.worst().pressure();
            if Signal::Slowness.pressure(slowness) > 1.0 {
                proptest::prop_assert!(next <= share);
            } else if worst < HOLD {
                proptest::prop_assert!(next >= share);
            } else if share >= even.clamp(LEAST, MOST) {
                proptest::prop_assert!(next <= share);
            }
        }
    }
}
