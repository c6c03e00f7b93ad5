use super::super::testing::FakeRecorder;
use super::*;

fn request(sample_every: u32) -> api::WatchFlowsRequest {
    api::WatchFlowsRequest {
        sample_every,
        ..api::WatchFlowsRequest::default()
    }
}

fn flow(cookie: u64) -> api::Flow {
    api::Flow {
        cookie,
        ..api::Flow::default()
    }
}

fn flows() -> (Flows, FakeRecorder) {
    let recorder = FakeRecorder::default();
    (Flows::new(Box::new(recorder.clone())).unwrap(), recorder)
}

#[test]
fn the_kernel_records_while_somebody_watches_and_no_longer() {
    let recorder = FakeRecorder::default();
    recorder.every.store(7, Ordering::Relaxed);
    let flows = Flows::new(Box::new(recorder.clone())).unwrap();
    let every = || recorder.every.load(Ordering::Relaxed);
    assert_eq!(every(), 0, "what a crashed agent left on is turned off");

    let some = flows.watch(request(10)).unwrap();
    assert_eq!(every(), 10);
    let all = flows.watch(request(0)).unwrap();
    assert_eq!(
        (every(), flows.watchers_now()),
        (1, 2),
        "the most curious decides"
    );
    drop(all);
    assert_eq!(every(), 10);
    drop(some);
    assert_eq!((every(), flows.watchers_now()), (0, 0));
}

#[tokio::test]
async fn a_slow_watcher_loses_and_is_told_and_holds_nobody_up() {
    let (flows, recorder) = flows();
    recorder.lost.store(5, Ordering::Relaxed);
    let mut slow = flows.watch(request(1)).unwrap();
    for cookie in 0..QUEUE as u64 + 3 {
        flows.publish(&flow(cookie), false);
    }
    assert_eq!(
        (slow.lost().watcher, slow.lost().ring),
        (3, 0),
        "what was lost before is another's"
    );
    recorder.lost.store(9, Ordering::Relaxed);
    assert_eq!(slow.lost().ring, 4);
    assert_eq!(flows.lost_by_watchers(), 3);
    assert_eq!(
        slow.next().await.unwrap().cookie,
        0,
        "what is there is kept"
    );
    flows.publish(&flow(99_999), false);
    assert_eq!(slow.lost().watcher, 3, "there is room again");
}

#[tokio::test]
async fn a_watcher_gets_what_it_asked_for_and_every_refusal() {
    let (flows, _) = flows();
    let mut failed = flows
        .watch(api::WatchFlowsRequest {
            verdict: "failed".into(),
            ..request(1)
        })
        .unwrap();
    let mut few = flows.watch(request(u32::MAX)).unwrap();
    let other = api::Flow {
        verdict: "closed".into(),
        ..flow(1)
    };
    flows.publish(&other, false);
    let wanted = api::Flow {
        verdict: "failed".into(),
        ..flow(2)
    };
    flows.publish(&wanted, false);
    assert_eq!(failed.next().await.unwrap().cookie, 2);
    let refused = api::Flow {
        verdict: "no-backend".into(),
        ..flow(3)
    };
    flows.publish(&refused, true);
    assert_eq!(few.next().await.unwrap().cookie, 3);
}
