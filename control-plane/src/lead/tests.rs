//! Candidates on the real API server, each with a kube-rs controller as its part: every object is worked on once, by the one
//! that leads, also when that one is stopped or cut off.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams, ResourceExt};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower::service_fn;

use super::{Candidate, Term};
use crate::api::{leaders_client, local_client, router, testing};
use crate::auth::{MASTERS, User};

/// Long enough for a busy machine, and for a lease to end.
const PATIENCE: Duration = Duration::from_secs(90);
const LEASE: &str = "example";

/// What the controllers did: the object, and who worked on it.
#[derive(Clone, Default)]
struct Work {
    done: Arc<Mutex<Vec<(String, &'static str)>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// Counts a part as long as it runs.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn user() -> User {
    User::authenticated("example-controller", [MASTERS.to_owned()])
}

/// A client that finds nobody once `is_cut`.
fn cuttable(router: &Router, is_cut: Arc<AtomicBool>) -> kube::Client {
    let client = local_client(router.clone(), user());
    let service = service_fn(move |request| {
        let (client, is_cut) = (client.clone(), is_cut.clone());
        async move {
            if is_cut.load(Ordering::SeqCst) {
                return Err(kube::Error::Service("the network is down".into()));
            }
            client.send(request).await
        }
    });
    kube::Client::new(service, "default")
}

/// A controller that notes on every ConfigMap with the label `work` who has worked on it.
async fn control(client: kube::Client, name: &'static str, work: Work, end: CancellationToken) {
    let running = work.running.fetch_add(1, Ordering::SeqCst) + 1;
    let _running = Running(work.running.clone());
    work.most.fetch_max(running, Ordering::SeqCst);
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let reconcile = |map: Arc<ConfigMap>, context: Arc<(Api<ConfigMap>, Work)>| async move {
        let (api, work) = &*context;
        if map.annotations().contains_key("worked-on") {
            return Ok(Action::await_change());
        }
        let patch = json!({
            "metadata": {"resourceVersion": map.resource_version(), "annotations": {"worked-on": name}},
        });
        let patch = Patch::Merge(&patch);
        api.patch(&map.name_any(), &PatchParams::default(), &patch)
            .await?;
        work.done.lock().unwrap().push((map.name_any(), name));
        Ok::<_, kube::Error>(Action::await_change())
    };
    let again = |_: Arc<ConfigMap>, _: &kube::Error, _: Arc<(Api<ConfigMap>, Work)>| {
        Action::requeue(Duration::from_millis(50))
    };
    Controller::new(api.clone(), watcher::Config::default().labels("work"))
        .graceful_shutdown_on(end.cancelled_owned())
        .run(reconcile, again, Arc::new((api, work)))
        .for_each(|_| std::future::ready(()))
        .await;
}

/// A candidate that runs until it is stopped, or finds nobody.
struct Started {
    name: &'static str,
    stop: CancellationToken,
    is_cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

fn start(router: &Router, name: &'static str, work: &Work) -> Started {
    let (stop, is_cut) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
    let election = cuttable(router, is_cut.clone());
    let candidate = Candidate::new(election, LEASE, name.to_owned());
    let (router, work, told) = (router.clone(), work.clone(), stop.clone());
    let part = move |term: Term, end| {
        let client = leaders_client(router.clone(), user(), term);
        control(client, name, work.clone(), end)
    };
    let task = tokio::spawn(candidate.run(told, part));
    Started {
        name,
        stop,
        is_cut,
        task,
    }
}

/// Makes objects and waits until they have been worked on; by whom.
async fn worker_of(api: &Api<ConfigMap>, round: usize, work: &Work) -> &'static str {
    let names: Vec<String> = (0..8).map(|n| format!("r{round}-{n}")).collect();
    for name in &names {
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"work": "yes"}},
        }))
        .unwrap();
        api.create(&PostParams::default(), &map).await.unwrap();
    }
    let all = async {
        loop {
            let done: BTreeMap<_, _> = work.done.lock().unwrap().iter().cloned().collect();
            let workers: Vec<_> = names.iter().filter_map(|name| done.get(name)).collect();
            if workers.len() == names.len() {
                let first = *workers[0];
                assert!(workers.iter().all(|it| **it == first), "{workers:?}");
                return first;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, all).await;
    waited.unwrap_or_else(|_| panic!("round {round}: {:?}", work.done.lock().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_controller_leads_and_another_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let (api, _) = testing::start(dir.path()).await;
    let router = router(api);
    let client = local_client(router.clone(), user());
    let leases: Api<Lease> = Api::namespaced(client.clone(), super::NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let holder = async || {
        let spec = leases.get(LEASE).await.unwrap().spec.unwrap();
        (
            spec.holder_identity.unwrap(),
            spec.lease_transitions.unwrap(),
        )
    };
    let work = Work::default();
    let mut candidates = vec![start(&router, "a", &work), start(&router, "b", &work)];

    let first = worker_of(&maps, 0, &work).await;
    assert_eq!(holder().await, (first.to_owned(), 0));

    // One that is stopped leaves the lease to the other when its part has ended.
    let at = candidates.iter().position(|it| it.name == first).unwrap();
    let stopped = candidates.remove(at);
    stopped.stop.cancel();
    stopped.task.await.unwrap();
    let second = worker_of(&maps, 1, &work).await;
    assert_ne!(second, first);
    assert_eq!(holder().await, (second.to_owned(), 1));

    // One that is cut off from the lease steps back before another leads, although its part could go on.
    candidates.push(start(&router, "c", &work));
    candidates[0].is_cut.store(true, Ordering::SeqCst);
    let left = async {
        while holder().await.0 != "c" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, left).await.unwrap();
    assert_eq!(worker_of(&maps, 2, &work).await, "c");
    assert_eq!(holder().await, ("c".to_owned(), 2));

    assert_eq!(work.most.load(Ordering::SeqCst), 1, "two led at a time");
    let mut done: Vec<_> = work.done.lock().unwrap().clone();
    done.sort();
    let count = done.len();
    done.dedup_by(|a, b| a.0 == b.0);
    assert_eq!(done.len(), count, "something was done twice");
    for candidate in candidates {
        candidate.stop.cancel();
        candidate.task.await.unwrap();
    }
}
