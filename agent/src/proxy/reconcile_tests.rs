use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::registry::Registry;

use super::super::state::LbState;
use super::super::testing::*;
use super::*;
use crate::cluster::{Changes, Node, Slice, View};
use crate::dataplane::Sockets;
use crate::dataplane::fake::{FakeMaps, FaultyMaps};

/// A worker on a cluster that looks like `view`, with what is pending for it.
fn worker<M: ServiceMaps>(view: View, maps: M) -> (Worker<M, Blind>, Changes) {
    let cluster = Cluster::default();
    cluster.update(|known| {
        *known = view;
        Vec::new()
    });
    cluster.set_synced();
    let changes = cluster.subscribe();
    let metrics = Metrics::new(&mut Registry::default());
    let proxy = ProxyHandle::new(LbState::new());
    (
        Worker::new(cluster, settings(None), proxy, metrics, maps, Blind),
        changes,
    )
}

fn settings(events: Option<Events>) -> Settings {
    Settings {
        node: NODE.into(),
        locality: Locality::Node,
        events,
    }
}

fn web() -> View {
    view(vec![(
        "web",
        service("10.96.0.1"),
        vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z2")],
    )])
}

#[tokio::test]
async fn a_failed_write_is_a_problem_until_it_is_made_up_for() {
    let broken = AtomicBool::new(true);
    let fails = |op: &MapOp| broken.load(Ordering::Relaxed) && matches!(op, MapOp::PutService(..));
    let (mut worker, mut changes) = worker(
        web(),
        FaultyMaps {
            inner: FakeMaps::default(),
            fails,
        },
    );
    worker.changed(changes.next().await).await;
    let key = ObjectKey::new("ns", "web");
    assert!(
        worker.proxy.read().problems[&key]
            .error
            .contains("cannot perform")
    );
    assert_eq!(worker.proxy.health().problems, 1);
    assert!(worker.maps.inner.state.services.is_empty());

    worker.retries.get_mut(&key).unwrap().at = Instant::now();
    worker.timer().await;
    assert_eq!(worker.proxy.read().problems[&key].attempts, 2);
    assert!(
        worker.retries[&key].at > Instant::now() + RETRY_FIRST,
        "the wait grows"
    );

    broken.store(false, Ordering::Relaxed);
    worker.retries.get_mut(&key).unwrap().at = Instant::now();
    worker.timer().await;
    assert_eq!(worker.proxy.health().problems, 0);
    assert!(worker.retries.is_empty());

    // What the failed tries wrote goes.
    worker.collect();
    worker.collect();
    let state = &worker.maps.inner.state;
    assert_eq!(
        (
            state.services.len(),
            state.slots.len(),
            state.backends.len()
        ),
        (1, 2, 2)
    );
}

#[tokio::test]
async fn nothing_is_collected_while_programs_of_another_version_serve() {
    let (mut worker, mut changes) = worker(web(), FakeMaps::default());
    worker.proxy.set_waiting(true);
    worker.changed(changes.next().await).await;
    let cluster = worker.cluster.clone();
    let gone = |view: &mut View| view.set_service(ObjectKey::new("ns", "web"), None);
    cluster.update(|view| gone(view).into_iter().collect());
    worker.changed(changes.next().await).await;
    let before = worker.maps.state.clone();
    for _ in 0..3 {
        worker.collect();
        assert!(worker.rounds.next().is_some(), "it is asked again");
    }
    assert_eq!(worker.maps.state, before);
    worker.proxy.set_waiting(false);
    worker.collect();
    worker.collect();
    assert!(worker.maps.state.backends.is_empty());
}

#[tokio::test]
async fn a_failed_removal_is_repeated() {
    let broken = AtomicBool::new(true);
    let fails = |op: &MapOp| broken.load(Ordering::Relaxed) && matches!(op, MapOp::DeleteSlot(..));
    let (mut worker, mut changes) = worker(
        web(),
        FaultyMaps {
            inner: FakeMaps::default(),
            fails,
        },
    );
    worker.changed(changes.next().await).await;
    let cluster = worker.cluster.clone();
    cluster.update(|view| {
        view.set_service(ObjectKey::new("ns", "web"), None)
            .into_iter()
            .collect()
    });
    worker.changed(changes.next().await).await;
    assert!(worker.maps.inner.state.services.is_empty());
    assert!(worker.rounds.next().is_some());
    worker.collect();
    worker.collect();
    assert_eq!(worker.maps.inner.state.slots.len(), 2);
    assert!(worker.rounds.pause() > COLLECT_AFTER, "the wait grows");
    broken.store(false, Ordering::Relaxed);
    worker.collect();
    assert!(worker.maps.inner.state.slots.is_empty());
    assert!(worker.undone.is_empty());
    assert_eq!(worker.rounds.pause(), COLLECT_AFTER);
}

#[tokio::test]
async fn the_sockets_of_a_backend_that_goes_are_closed_after_two_rounds_whatever_else_fails() {
    let broken = AtomicBool::new(true);
    let fails = |op: &MapOp| broken.load(Ordering::Relaxed) && matches!(op, MapOp::DeleteSlot(..));
    let inner = FakeMaps::default();
    let (mut worker, mut changes) = worker(web(), FaultyMaps { inner, fails });
    worker.changed(changes.next().await).await;
    let cluster = worker.cluster.clone();
    let offer = |last: u8| {
        let slice = slice("web", vec![endpoint(last, "a", "z1")]);
        cluster.update(|view| view.set_slice(ObjectKey::new("ns", "web-1"), Some(slice)));
    };
    // Rows that cannot be removed make their own removal wait.
    offer(1);
    worker.changed(changes.next().await).await;
    for _ in 0..9 {
        worker.collect();
    }
    assert!(worker.rounds.pause() > Duration::from_secs(20));

    offer(3);
    worker.changed(changes.next().await).await;
    worker.maps.inner.log.clear();
    for _ in 0..2 {
        let due = worker.rounds.next().unwrap();
        assert!(due <= Instant::now() + COLLECT_AFTER);
        // As if the time had come.
        worker.rounds = Rounds::default();
        worker.collect();
        worker.collect_soon();
    }
    let closed = |op: &MapOp| matches!(op, MapOp::DeleteBackend(_, Sockets::Close));
    assert!(worker.maps.inner.log.iter().any(closed));
}

#[tokio::test]
async fn the_nodes_zone_concerns_every_service_and_other_nodes_none() {
    let (mut worker, mut changes) = worker(web(), FakeMaps::default());
    worker.changed(changes.next().await).await;
    worker.maps.log.clear();
    let cluster = worker.cluster.clone();
    let in_zone = |zone: &str| Node {
        zone: Some(zone.into()),
        ..Node::default()
    };
    cluster.update(|view| {
        view.set_node("b".into(), Some(in_zone("z9")))
            .into_iter()
            .collect()
    });
    worker.changed(changes.next().await).await;
    assert!(worker.maps.log.is_empty());
    cluster.update(|view| {
        view.set_node(NODE.into(), Some(in_zone("z2")))
            .into_iter()
            .collect()
    });
    worker.changed(changes.next().await).await;
    let entry = worker.maps.state.services.values().next().unwrap();
    assert_eq!((entry.local, entry.zone), (1, 1));
}

#[tokio::test]
async fn one_change_among_ten_thousand_services_costs_one_service() {
    let names: Vec<String> = (0..10_000).map(|n| format!("s{n}")).collect();
    let services = names.iter().enumerate().map(|(n, name)| {
        let address = format!("10.97.{}.{}", n / 250, n % 250);
        let backends = (0..3u8).map(|e| {
            let address = std::net::Ipv4Addr::new(10, 100 + e, (n / 250) as u8, (n % 250) as u8);
            crate::cluster::Endpoint {
                addresses: vec![address.into()],
                ..endpoint(1, ["a", "b", "c"][e as usize], "z1")
            }
        });
        (name.as_str(), service(&address), backends.collect())
    });
    let (mut worker, mut changes) = worker(view(services.collect()), FakeMaps::default());
    worker.changed(changes.next().await).await;
    assert_eq!(worker.maps.log.len(), 10_000 * (3 + 3 + 1), "each row once");

    worker.maps.log.clear();
    let cluster = worker.cluster.clone();
    let changed = slice("s77", vec![endpoint(1, "a", "z1"), endpoint(2, "b", "z1")]);
    cluster.update(|view| view.set_slice(ObjectKey::new("ns", "s77-1"), Some(changed)));
    worker.changed(changes.next().await).await;
    assert_eq!(worker.maps.log.len(), 2 + 2 + 1);
    worker.collect();
    worker.collect();
    assert_eq!(worker.maps.log.len(), 2 + 2 + 1 + 3 + 3);
}

#[tokio::test]
async fn a_change_is_measured_from_the_time_on_its_slice_once() {
    let mut view = view(vec![(
        "web",
        service("10.96.0.1"),
        vec![endpoint(1, NODE, "z1")],
    )]);
    let changed = |view: &mut View, ahead_s: i64| {
        let at = Timestamp::now() + jiff::SignedDuration::from_secs(ahead_s);
        let slice = Slice {
            changed: Some(at),
            ..slice("web", vec![endpoint(1, NODE, "z1")])
        };
        view.set_slice(ObjectKey::new("ns", "web-1"), Some(slice))
    };
    changed(&mut view, -3600);
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let count = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let name = "kubeproxy_network_programming_duration_seconds_count ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    };
    let (mut worker, mut changes) = worker(view, FakeMaps::default());
    worker.metrics = metrics.clone();
    worker.changed(changes.next().await).await;
    assert_eq!(count(), "0", "it is from before the agent ran");

    worker.cluster.update(|view| changed(view, 1));
    worker.changed(changes.next().await).await;
    assert_eq!(count(), "1");
    let again = [(ObjectKey::new("ns", "web"), std::time::Instant::now())];
    worker.sync_all(again.into(), BTreeSet::new()).await;
    assert_eq!(count(), "1", "it counts once");
}

#[tokio::test]
async fn only_passes_with_something_to_do_are_measured() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let count = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let name = "kubeproxy_sync_proxy_rules_duration_seconds_count ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    };
    let (mut worker, mut changes) = worker(web(), FakeMaps::default());
    worker.metrics = metrics.clone();
    worker.changed(changes.next().await).await;
    assert_eq!(count(), "1");
    let ended = metrics.synced_at.get();
    for _ in 0..3 {
        worker.look_at = Instant::now();
        worker.timer().await;
    }
    assert_eq!(count(), "1", "nothing changed");
    assert_eq!(metrics.synced_at.get(), ended);

    // What the feedback moved counts, and is no change of the cluster.
    let web = ObjectKey::new("ns", "web");
    worker.sync_all(BTreeMap::new(), [web.clone()].into()).await;
    assert_eq!(count(), "2");
    assert!(metrics.synced_at.get() > ended);

    // The time of a change is that at which it was queued.
    let queued = metrics.queued_at.get();
    let earlier = std::time::Instant::now() - Duration::from_secs(1000);
    worker
        .changed([(Change::Service(web), earlier)].into())
        .await;
    assert!(metrics.queued_at.get() < queued - 900.0);
    let queued = metrics.queued_at.get();
    let other = (Change::Node("other".into()), std::time::Instant::now());
    worker.changed([other].into()).await;
    assert_eq!(metrics.queued_at.get(), queued, "it asks for no pass");
    assert_eq!(count(), "3");
}

#[tokio::test]
async fn each_pass_says_that_no_change_waits() {
    let (mut worker, _changes) = worker(web(), FakeMaps::default());
    let begun = std::time::Instant::now() - Duration::from_secs(1000);
    worker.proxy.write().passed = begun;
    assert!(worker.proxy.health().since_pass >= Duration::from_secs(1000));
    worker.timer().await;
    assert!(worker.proxy.read().passed > begun);
}
