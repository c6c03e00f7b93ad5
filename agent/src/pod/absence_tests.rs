//! Others that are away or do not answer, and pods that ask for nonsense.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::report::{self, Report};
use super::shared::Order;
use super::testing::node::{FOREVER, Node, is_ready, spec, told};
use super::testing::{FakeApi, uid};
use super::{Manager, PodTable};
use crate::runtime::testing::relay;
use crate::runtime::{PodRef, Runtime};
use crate::testing::steps::Steps;

#[tokio::test]
async fn an_api_that_was_away_hears_the_newest_status_and_no_other() {
    let api = FakeApi::new();
    api.create("quiet", json!({"containers": []}));
    let steps = Arc::<Steps>::default();
    let pod = PodRef {
        namespace: "default".into(),
        name: "quiet".into(),
        uid: uid("quiet"),
    };
    let (reports, newest) = watch::channel(Report::Nothing);
    let (_orders, orders) = watch::channel(Order::default());
    let client = api.client_by(steps.clone());
    let reporter = tokio::spawn(report::run(client, pod, newest, orders));
    api.set_away(true);
    // Its containers restart all the while.
    let mut last = PodStatus::default();
    for change in 0..10_000 {
        last.message = Some(change.to_string());
        reports.send_replace(Report::Status(Arc::new(last.clone())));
        tokio::task::yield_now().await;
    }
    let tries = steps.taken().len();
    assert!(tries < 100, "{tries} tries, not one for each change");
    let mut told = api.changes();
    api.set_away(false);
    let is_last = |status: &PodStatus| status.message == last.message;
    api.wait("quiet", "told", is_last).await;
    let first = told.recv().await.unwrap();
    assert_eq!(first["object"]["status"]["message"], json!(last.message));
    reports.send_replace(Report::Gone(Arc::new(last)));
    api.wait_gone("quiet").await;
    reporter.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_hangs_is_waited_for_and_nothing_restarts() {
    let Some(node) = Node::new().await else {
        return;
    };
    let steps = Arc::<Steps>::default();
    let socket = node.daemon.path().join("relay.sock");
    let _relay = relay::start(&socket, &node.daemon.socket(), steps.clone());
    let _agent = Manager::start(
        node.api.client(),
        node.settings(),
        Arc::new(node.daemon.client_at(&socket)),
        node.network.clone(),
        PodTable::default(),
    );
    node.api.create("before", spec(FOREVER, "Always"));
    node.api.wait("before", "ready", is_ready).await;
    let before = node.daemon.client().list().await.unwrap();

    steps.hold(true);
    node.api.create("during", spec(FOREVER, "Always"));
    let begun = |status: &PodStatus| status.conditions.is_some();
    let taken = node.api.wait("during", "taken", begun).await;
    assert!(!is_ready(&taken));
    let status = node.api.pod("before").unwrap().status.unwrap();
    assert!(is_ready(&status), "who runs stays in service: {status:?}");
    steps.hold(false);
    node.api.wait("during", "ready", is_ready).await;
    let after = node.daemon.client().list().await.unwrap();
    assert_eq!(after.len(), 2);
    assert!(before.iter().all(|container| after.contains(container)));

    // People hear of it when its time is up.
    steps.be_late(true);
    node.api.create("unanswered", spec(FOREVER, "Always"));
    let words = "cannot create container main: containerd gave no answer in time";
    let is_told =
        |status: &PodStatus| waiting(status) == Some(("CreateContainerError".into(), words.into()));
    node.api
        .wait("unanswered", "told of the runtime", is_told)
        .await;
    told(&node, &format!("Failed: Error: {words}")).await;
    let status = node.api.pod("before").unwrap().status.unwrap();
    assert!(is_ready(&status), "who runs stays in service: {status:?}");
    steps.be_late(false);
    node.api.wait("unanswered", "ready", is_ready).await;
    for name in ["before", "during", "unanswered"] {
        node.api.delete(name, 5);
        node.api.wait_gone(name).await;
    }
}

fn waiting(status: &PodStatus) -> Option<(String, String)> {
    let container = status.container_statuses.as_ref()?.first()?;
    let waiting = container.state.as_ref()?.waiting.clone()?;
    Some((waiting.reason?, waiting.message.unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_ask_for_nonsense_wait_with_the_reason_and_no_other_notices() {
    let Some(node) = Node::new().await else {
        return;
    };
    let _agent = node.agent();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut pod = spec(FOREVER, "Always");
        change(&mut pod["containers"][0]);
        pod
    };
    // What the API server lets through, or another one would.
    let cases: [(&str, Value, &str, &str); 4] = [
        (
            "no-image",
            with(&|main| main["image"] = json!("Not An Image")),
            "InvalidImageName",
            "",
        ),
        (
            "no-secret",
            with(&|main| {
                main["env"] = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "a"}}}]);
            }),
            "CreateContainerConfigError",
            "secret \"absent\" not found",
        ),
        (
            "no-volume",
            with(&|main| main["volumeMounts"] = json!([{"name": "absent", "mountPath": "/x"}])),
            "CreateContainerConfigError",
            "the pod has no such volume",
        ),
        (
            "no-field",
            with(&|main| {
                main["env"] = json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nonsense"}}}]);
            }),
            "CreateContainerConfigError",
            "spec.nonsense",
        ),
    ];
    node.api.create("sane", spec(FOREVER, "Always"));
    for (name, pod, _, _) in &cases {
        node.api.create(name, pod.clone());
    }
    for (name, _, reason, words) in &cases {
        let is_so = |status: &PodStatus| {
            waiting(status).is_some_and(|(why, message)| why == *reason && message.contains(words))
        };
        node.api.wait(name, reason, is_so).await;
    }
    node.api.wait("sane", "ready", is_ready).await;
    for (name, _, _, _) in &cases {
        node.api.delete(name, 0);
        node.api.wait_gone(name).await;
    }
    let status = node.api.pod("sane").unwrap().status.unwrap();
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!((is_ready(&status), container.restart_count), (true, 0));
    node.api.delete("sane", 0);
    node.api.wait_gone("sane").await;
    assert_eq!(node.left_on_disk(), Vec::<String>::new());
}
