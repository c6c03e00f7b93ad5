//! What the simulation has to show.

use super::*;

/// All clients on the first of four nodes.
fn skewed(name: &'static str, rate: f64) -> Scenario {
    Scenario {
        name,
        clients: vec![rate, 0.0, 0.0, 0.0],
        workers: 4,
        service_time: 0.01,
        slow: None,
        refuses: None,
        seconds: 120.0,
    }
}

/// As many clients on each of four nodes.
fn everywhere(name: &'static str, rate: f64) -> Scenario {
    Scenario {
        clients: vec![rate; 4],
        ..skewed(name, 0.0)
    }
}

pub(super) fn comfort() -> Scenario {
    skewed("comfort", 240.0)
}

pub(super) fn overload() -> Scenario {
    skewed("skewed overload", 800.0)
}

pub(super) fn throttled() -> Scenario {
    Scenario {
        slow: Some((0.0..120.0, 8.0)),
        ..skewed("throttled local backend", 200.0)
    }
}

pub(super) fn everybody_busy() -> Scenario {
    everywhere("everybody is busy", 360.0)
}

pub(super) fn recovery() -> Scenario {
    Scenario {
        slow: Some((20.0..60.0, 8.0)),
        seconds: 150.0,
        ..skewed("throttled for a while", 200.0)
    }
}

pub(super) fn refusal() -> Scenario {
    Scenario {
        refuses: Some(30.0..60.0),
        ..skewed("a backend that refuses", 800.0)
    }
}

/// After the first half a minute.
pub(super) fn settled(scenario: &Scenario) -> Range<f64> {
    30.0..scenario.seconds
}

fn p99(scenario: &Scenario, strategy: Strategy) -> f64 {
    scenario.run(strategy).percentile(99.0, settled(scenario))
}

/// How often a series turned by more than `by`.
fn turns(shares: &[f64], by: f64) -> usize {
    let (mut low, mut high, mut rising, mut turns) = (f64::MAX, f64::MIN, None, 0);
    for share in shares.iter().copied() {
        (low, high) = (low.min(share), high.max(share));
        let turned = match rising {
            Some(true) => share < high - by,
            Some(false) => share > low + by,
            None => high - low > by,
        };
        if turned {
            turns += usize::from(rising.is_some());
            rising = Some(rising.map_or(share == high, |was: bool| !was));
            (low, high) = (share, share);
        }
    }
    turns
}

#[test]
fn in_comfort_all_but_a_hundredth_stays_on_the_node() {
    let alone = Scenario {
        workers: 1,
        ..skewed("one worker", 40.0)
    };
    let short = Scenario {
        workers: 16,
        service_time: 0.001,
        ..skewed("short connections", 1000.0)
    };
    let long = Scenario {
        workers: 10_000,
        service_time: 30.0,
        ..skewed("long connections", 100.0)
    };
    let all = [comfort(), skewed("busy", 300.0), alone, short, long];
    for scenario in all.into_iter().chain([everywhere("everybody", 240.0)]) {
        let outcome = scenario.run(Strategy::Feedback);
        let stays = outcome.locality(0.0..scenario.seconds);
        assert!(stays > 0.985, "{}: {stays}", scenario.name);
        assert_eq!(turns(&outcome.shares, 0.03), 0, "{}", scenario.name);
    }
}

#[test]
fn in_overload_the_slowest_are_nearly_as_fast_as_with_an_even_spread() {
    let one = Scenario {
        workers: 1,
        ..skewed("one worker", 200.0)
    };
    for scenario in [overload(), throttled()] {
        let clever = p99(&scenario, Strategy::LeastConnections);
        let ratio = p99(&scenario, Strategy::Feedback) / clever;
        assert!(ratio < 1.5, "{}: {ratio}", scenario.name);
    }
    for scenario in [overload(), throttled(), one] {
        let even = p99(&scenario, Strategy::Random);
        let ratio = p99(&scenario, Strategy::Feedback) / even;
        assert!(ratio < 1.5, "{}: {ratio}", scenario.name);
        let through = |strategy| scenario.run(strategy).throughput(settled(&scenario));
        let (feedback, random) = (through(Strategy::Feedback), through(Strategy::Random));
        assert!(
            feedback > 0.98 * random,
            "{}: {feedback} of {random}",
            scenario.name
        );
    }
}

#[test]
fn where_all_nodes_are_busy_nobody_flees() {
    for scenario in [everybody_busy(), everywhere("very busy", 380.0)] {
        let outcome = scenario.run(Strategy::Feedback);
        let random = scenario.run(Strategy::Random);
        let p99 = |outcome: &Outcome| outcome.percentile(99.0, settled(&scenario));
        let ratio = p99(&outcome) / p99(&random);
        assert!(ratio < 1.5, "{}: {ratio}", scenario.name);
        let stays = outcome.locality(settled(&scenario));
        assert!(stays > 0.8, "{}: {stays}", scenario.name);
    }
}

#[test]
fn the_share_settles() {
    for scenario in [overload(), throttled()] {
        let shares = scenario.run(Strategy::Feedback).shares;
        let shares = &shares[300..];
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let furthest = shares
            .iter()
            .map(|share| (share - mean).abs())
            .fold(0.0, f64::max);
        assert!(furthest < 0.2, "{}: {furthest} from {mean}", scenario.name);
        // Within a minute and a half.
        let turns = turns(shares, 0.1);
        assert!(turns <= 12, "{}: {turns} turns", scenario.name);
    }
}

#[test]
fn what_recovers_gets_its_traffic_back() {
    let scenario = recovery();
    let outcome = scenario.run(Strategy::Feedback);
    assert!(outcome.locality(0.0..20.0) > 0.98);
    assert!(
        outcome.locality(40.0..60.0) < 0.1,
        "it is slow by a factor of 8"
    );
    assert!(
        outcome.locality(130.0..150.0) > 0.98,
        "70 s after its recovery"
    );
    assert_eq!(turns(&outcome.shares, 0.3), 1, "down once, up once");
}

#[test]
fn a_backend_that_refuses_is_tried_less_and_less() {
    let scenario = refusal();
    let while_it_refuses = 30.0..60.0;
    let (outcome, random) = (
        scenario.run(Strategy::Feedback),
        scenario.run(Strategy::Random),
    );
    let refused = outcome.refused(while_it_refuses.clone());
    let others = random.refused(while_it_refuses);
    assert!(refused * 20 < others, "{refused} of {others}");
    assert_eq!(outcome.refused(60.0..scenario.seconds), 0);
    let late = outcome.done.iter().filter(|done| done.at > 100.0);
    assert!(late.count() > 0);
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let [one, two] = [comfort(), comfort()].map(|scenario| scenario.run(Strategy::Feedback));
    assert_eq!(one.shares, two.shares);
    assert_eq!(one.done.len(), two.done.len());
}
