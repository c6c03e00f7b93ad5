//! Pods through the cluster's API.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

pub struct Pods {
    pub client: Client,
    pub api: Api<Pod>,
}

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Pod>>> + Send>>;

impl Pods {
    pub fn new(client: Client) -> Pods {
        Pods {
            api: Api::default_namespaced(client.clone()),
            client,
        }
    }

    /// Creates bound pods, all at once, and gives the time from the request to Running of each.
    pub async fn start(&self, names: &[String]) -> Vec<Duration> {
        let pods: Vec<Pod> = names.iter().map(|name| pod(name)).collect();
        self.start_all(&pods).await
    }

    pub async fn start_all(&self, pods: &[Pod]) -> Vec<Duration> {
        let mut events = self.watch().await;
        let began = Instant::now();
        let created = futures::future::join_all(pods.iter().map(async |pod| {
            let posted = began.elapsed();
            let created = self.api.create(&PostParams::default(), pod).await;
            let created = created.unwrap_or_else(|error| panic!("creating a pod: {error}"));
            (created.metadata.name.unwrap_or_default(), posted)
        }));
        let running = async {
            let mut running = BTreeMap::new();
            while running.len() < pods.len() {
                let pod = next(&mut events).await;
                let phase = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                if phase == Some("Running") {
                    let name = pod.metadata.name.unwrap_or_default();
                    running.entry(name).or_insert_with(|| began.elapsed());
                }
            }
            running
        };
        let (created, running) = tokio::join!(created, running);
        let took = created.iter().map(|(name, posted)| running[name] - *posted);
        took.collect()
    }

    /// Changes from now on.
    pub async fn watch(&self) -> Events {
        let list = self.api.list_metadata(&Default::default()).await;
        let version = list.expect("pods can be listed").metadata.resource_version;
        let version = version.unwrap_or_default();
        let parameters = WatchParams::default();
        let events = self.api.watch(&parameters, &version).await;
        events.expect("pods can be watched").boxed()
    }

    pub async fn remove(&self, names: &[String]) {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        futures::future::join_all(names.iter().map(async |name| {
            let deleted = self.api.delete(name, &now).await;
            deleted.unwrap_or_else(|error| panic!("deleting {name}: {error}"));
            while self.api.get_opt(name).await.is_ok_and(|pod| pod.is_some()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }))
        .await;
    }
}

/// The pod that was added or changed next.
pub async fn next(events: &mut Events) -> Pod {
    loop {
        let event = events.try_next().await.expect("the watch goes on");
        match event.expect("the watch does not end") {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => return pod,
            _ => {}
        }
    }
}

pub fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": "worker-1",
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "backend", "image": "backend:v0.0.1" }],
        },
    }))
    .expect("a pod")
}
