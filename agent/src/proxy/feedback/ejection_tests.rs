use agent_ebpf::abi::{Address, Scope, ServiceKey, TCP};
use proptest::prelude::*;

use super::super::super::policy::{AddressKind, Backend, Preference};
use super::*;

const TICK: f64 = 0.1;

fn target(last: u8) -> Target {
    Target {
        address: Address::v4([10, 244, 0, last]),
        port: [0, 80],
        protocol: TCP,
    }
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn failed(failures: u64) -> Counters {
    Counters {
        opens: failures,
        closes: failures,
        failures,
        ..Counters::default()
    }
}

fn answered(handshakes: u64, each: Duration) -> Counters {
    Counters {
        opens: handshakes,
        handshakes,
        handshake_ns: handshakes * each.as_nanos() as u64,
        ..Counters::default()
    }
}

fn opened(opens: u64) -> Counters {
    Counters {
        opens,
        ..Counters::default()
    }
}

fn peers() -> Peers {
    Peers {
        answered: 10,
        handshake: Some(0.001),
    }
}

/// What becomes of a backend that is seen like this, look after look; the reason if it goes out.
fn fate(seen: &[Counters], peers: Peers) -> Option<Reason> {
    let mut ejector = Ejector::default();
    for (look, seen) in (0..).zip(seen) {
        ejector.observe(target(1), seen, &peers, at(look * 100), TICK);
    }
    ejector
        .out()
        .get(&target(1))
        .map(|ejection| ejection.reason)
}

#[test]
fn what_fails_is_out_and_what_answers_is_not() {
    let ms = Duration::from_millis(1);
    let mixed = |good, bad| Counters {
        failures: bad,
        ..answered(good, ms)
    };
    let failures = |failed| Some(Reason::Failures { failed });
    let silent = vec![opened(1); 20];
    let alone = Peers::default();
    let late = answered(5, Duration::from_secs(1));
    let table = [
        (
            "refusals at one look",
            vec![failed(3)],
            peers(),
            failures(3),
        ),
        ("one by one", vec![failed(1); 3], peers(), failures(3)),
        ("even where all fail", vec![failed(3)], alone, failures(3)),
        ("two are not enough", vec![failed(2)], peers(), None),
        (
            "successes in between",
            vec![failed(2), answered(1, ms), failed(2)],
            peers(),
            None,
        ),
        (
            "half of them fail",
            vec![mixed(2, 2), mixed(1, 1)],
            peers(),
            failures(3),
        ),
        ("few of them fail", vec![mixed(10, 3); 5], peers(), None),
        ("quiet", vec![Counters::default(); 100], peers(), None),
        (
            "an answer just so",
            [vec![opened(1); 14], vec![answered(1, ms)]].concat(),
            peers(),
            None,
        ),
        ("silence everywhere", silent.clone(), alone, None),
    ];
    for (what, seen, peers, expected) in table {
        assert_eq!(fate(&seen, peers), expected, "{what}");
    }
    assert!(matches!(
        fate(&silent, peers()),
        Some(Reason::Silent { .. })
    ));
    assert!(matches!(fate(&[late], peers()), Some(Reason::Late { .. })));
    let far = Peers {
        handshake: Some(0.3),
        ..peers()
    };
    assert_eq!(fate(&[late], far), None, "the others are far as well");
}

#[test]
fn each_time_is_longer_until_a_quiet_while() {
    let mut ejector = Ejector::default();
    let mut now = at(0);
    let mut lengths = Vec::new();
    for _ in 0..8 {
        assert!(ejector.observe(target(1), &failed(3), &peers(), now, TICK));
        let ejection = ejector.out()[&target(1)];
        lengths.push((ejection.until - now).as_secs());
        assert!(ejector.restore(ejection.until - at(1)).is_empty());
        assert_eq!(ejector.restore(ejection.until), [target(1)]);
        now = ejection.until + at(100);
    }
    assert_eq!(lengths, [1, 2, 4, 8, 16, 32, 60, 60]);
    ejector.observe(target(1), &answered(1, at(1)), &peers(), now + QUIET, TICK);
    assert!(ejector.observe(target(1), &failed(3), &peers(), now + QUIET, TICK));
    assert_eq!(ejector.out()[&target(1)].times, 1);
}

#[test]
fn the_past_of_an_ejected_backend_outlives_its_absence() {
    let mut ejector = Ejector::default();
    ejector.observe(target(1), &failed(3), &peers(), at(0), TICK);
    ejector.observe(target(2), &answered(1, at(1)), &peers(), at(0), TICK);
    ejector.restore(at(1000));
    ejector.forget(at(2000), |_| false);
    assert_eq!(ejector.health.len(), 1);
    ejector.forget(at(1000) + QUIET, |_| false);
    assert!(ejector.health.is_empty());
}

fn frontend(classes: &[Class]) -> Frontend {
    let mut backends: Vec<Backend> = (1..)
        .zip(classes)
        .map(|(last, class)| Backend {
            class: *class,
            target: target(last),
        })
        .collect();
    backends.sort_unstable();
    Frontend {
        key: ServiceKey {
            address: Address::v4([10, 96, 0, 1]),
            port: [0, 80],
            protocol: TCP,
            scope: Scope::CLUSTER,
        },
        kind: AddressKind::ClusterIp,
        port_name: "".into(),
        preference: Preference::Node,
        affinity_timeout_s: 0,
        created: 0,
        node_share: 0,
        source_ranges: None,
        direct_return: false,
        backends,
    }
}

fn out(last: u8, since: u64) -> (Target, Ejection) {
    let ejection = Ejection {
        reason: Reason::Failures { failed: 3 },
        since: at(since),
        until: at(since) + FIRST,
        times: 1,
    };
    (target(last), ejection)
}

fn drained(frontend: &Frontend) -> Vec<Target> {
    let backends = frontend.backends.iter();
    let mut drained: Vec<Target> = backends
        .filter(|backend| backend.class == Class::Draining)
        .map(|backend| backend.target)
        .collect();
    drained.sort_unstable();
    drained
}

#[test]
fn never_more_than_half_and_the_first_stay_out() {
    let ejected: Ejected = [out(1, 30), out(2, 20), out(3, 10)].into();
    let table: [(&[Class], &[u8]); 5] = [
        (&[Class::Local], &[]),
        (&[Class::Local, Class::Rest], &[2]),
        (&[Class::Local, Class::Zone, Class::Rest], &[3]),
        (
            &[Class::Local, Class::Zone, Class::Rest, Class::Rest],
            &[2, 3],
        ),
        (&[Class::Terminating; 4], &[]),
    ];
    for (classes, expected) in table {
        let mut frontend = frontend(classes);
        apply(&mut frontend, &ejected);
        let expected: Vec<Target> = expected.iter().map(|last| target(*last)).collect();
        assert_eq!(drained(&frontend), expected, "{classes:?}");
        assert!(frontend.backends.is_sorted());
    }
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![
        Just(Class::Local),
        Just(Class::Zone),
        Just(Class::Rest),
        Just(Class::Terminating),
        Just(Class::Draining),
    ]
}

proptest! {
    #[test]
    fn at_least_half_of_the_ready_backends_stay(
        classes in prop::collection::vec(any_class(), 0..12),
        ejected in prop::collection::btree_map(1_u8..14, 0_u64..1000, 0..14),
    ) {
        let ready = |frontend: &Frontend| {
            frontend.backends.iter().filter(|backend| backend.class < Class::Terminating).count()
        };
        let ejected: Ejected = ejected.into_iter().map(|(last, since)| out(last, since)).collect();
        let before = frontend(&classes);
        let mut after = before.clone();
        apply(&mut after, &ejected);
        prop_assert!(ready(&after) * 2 >= ready(&before));
        prop_assert!(after.backends.is_sorted());
        prop_assert_eq!(after.backends.len(), before.backends.len());
        for backend in &after.backends {
            let unchanged = before.backends.contains(backend);
            let ejected = backend.class == Class::Draining && ejected.contains_key(&backend.target);
            prop_assert!(unchanged || ejected);
        }
    }
}
