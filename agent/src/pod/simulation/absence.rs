//! An hour without the API server, in simulated time: a pod restarts by its policy, and a real reporter tries to tell of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::pod::report::{self, Report};
use crate::pod::shared::Order;
use crate::pod::testing::{FakeApi, uid};
use crate::runtime::PodRef;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// Longer than anything here takes; nothing depends on how long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pod's worker, as far as it tells.
struct Teller {
    reports: watch::Sender<Report>,
    last: PodStatus,
}

impl Teller {
    fn tell(&mut self, world: &World) {
        let around = Surroundings::default();
        self.last = status(&world.pod, &world.observed, &around, &self.last, world.now);
        let report = Report::Status(Arc::new(self.last.clone()));
        self.reports.send_replace(report);
    }

    fn restarts(&self) -> i32 {
        let containers = self.last.container_statuses.iter().flatten();
        containers.map(|container| container.restart_count).sum()
    }
}

#[tokio::test]
async fn after_an_hour_without_the_api_it_hears_the_newest_status_and_nothing_has_grown() {
    let api = FakeApi::new();
    api.create("away", json!({"containers": []}));
    let of = PodRef {
        namespace: "default".into(),
        name: "away".into(),
        uid: uid("away"),
    };
    let (reports, newest) = watch::channel(Report::Nothing);
    let (_orders, orders) = watch::channel(Order::default());
    let _reporter = tokio::spawn(report::run(api.client(), of, newest, orders));
    let mut teller = Teller {
        reports,
        last: PodStatus::default(),
    };
    // Its init container runs first.
    let mut world = World::new(pod("Always", 1, false, 2));
    world.settle();
    world.end(0, 0);
    world.settle();
    teller.tell(&world);
    let is_told = |told: &PodStatus, last: &PodStatus| {
        told.container_statuses == last.container_statuses && told.phase == last.phase
    };
    api.wait("away", "told", |told| is_told(told, &teller.last))
        .await;

    // The object never changes: nobody takes a status, and no news come.
    api.set_away(true);
    let begin = world.now;
    let mut sizes = Vec::new();
    let mut ends = 0;
    while world.now.duration_since(begin) < HOUR {
        world.pass(5);
        world.end(0, 1);
        ends += 1;
        world.look();
        teller.tell(&world);
        world.settle();
        // Each new container is probed.
        world.start_up();
        world.settle();
        teller.tell(&world);
        let running = world.containers.values().filter(|it| it.is_running());
        assert_eq!(running.count(), 2);
        assert!(
            world.containers.len() <= 1 + 2 * 2,
            "one before each at most"
        );
        // All that a worker keeps, as text.
        sizes.push(format!("{:?} {:?}", world.observed, teller.last).len());
        tokio::task::yield_now().await;
    }
    // By waits of 10, 20 … 160 and then 300 seconds, for two containers that take turns or one that fails alone.
    assert!((12..40).contains(&ends), "{ends}");
    assert_eq!(teller.restarts(), ends, "each came back");
    let (early, late) = sizes.split_at(sizes.len() / 2);
    let most = |sizes: &[usize]| sizes.iter().copied().max().unwrap();
    // A number may have got a digit more.
    assert!(most(late) <= most(early) + 64, "{sizes:?}");

    let mut changes = api.changes();
    api.set_away(false);
    let first = tokio::time::timeout(PATIENCE, changes.recv()).await;
    let first = first.expect("it is told").unwrap();
    let told: PodStatus = serde_json::from_value(first["object"]["status"].clone()).unwrap();
    assert!(is_told(&told, &teller.last), "{told:?}");
}
