//! A controller as people write them with kube-rs: each ConfigMap that asks for it gets a Secret with a greeting, and a record
//! when it goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Step, finalizer};
use kube::runtime::watcher;
use kube::{Client, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::election::Candidate;

pub const FINALIZER: &str = "greeter.example.com/farewell";

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Finalizer(#[from] Box<kube::runtime::finalizer::Error<kube::Error>>),
}

struct Greeter {
    client: Client,
    name: String,
    recorder: Recorder,
}

/// Works whenever it leads, until it is dropped.
pub async fn run(client: Client, name: String) {
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let mut candidate = Candidate::new(leases, "greeter", &name);
    let reporter = Reporter {
        controller: "greeter".to_owned(),
        instance: Some(name.clone()),
    };
    let greeter = Arc::new(Greeter {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        name,
    });
    loop {
        candidate.win().await;
        tokio::select! {
            () = candidate.lead() => {}
            () = control(greeter.clone()) => {}
        }
    }
}

async fn control(greeter: Arc<Greeter>) {
    let client = greeter.client.clone();
    let maps = Api::<ConfigMap>::default_namespaced(client.clone());
    let secrets = Api::<Secret>::default_namespaced(client);
    // Both ways in which informers begin: a stream that has the list within, and a list in pages before a watch.
    let asking = watcher::Config::default().labels("greet");
    let pages = watcher::Config::default().page_size(1);
    Controller::new(maps, asking.streaming_lists())
        .owns(secrets, pages)
        .run(
            reconcile,
            |_, _: &Failure, _| Action::requeue(Duration::from_millis(500)),
            greeter,
        )
        .for_each(|_| async {})
        .await;
}

async fn reconcile(map: Arc<ConfigMap>, greeter: Arc<Greeter>) -> Result<Action, Failure> {
    let maps = Api::<ConfigMap>::default_namespaced(greeter.client.clone());
    let step = |step| async {
        match step {
            Step::Apply(map) => greet(&map, &greeter).await,
            Step::Cleanup(map) => part(&map, &greeter).await,
        }
    };
    let done = finalizer(&maps, FINALIZER, map, step).await;
    Ok(done.map_err(Box::new)?)
}

async fn greet(map: &ConfigMap, greeter: &Greeter) -> kube::Result<Action> {
    let secrets = Api::<Secret>::default_namespaced(greeter.client.clone());
    let name = map.name_any();
    let whom = map.data.as_ref().and_then(|data| data.get("whom"));
    let wanted = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "ownerReferences": [map.controller_owner_ref(&())]},
        "stringData": {"greeting": format!("hello {}", whom.map_or("you", |whom| whom)), "by": greeter.name},
    });
    let apply = PatchParams::apply("greeter").force();
    secrets.patch(&name, &apply, &Patch::Apply(&wanted)).await?;
    let greeted = Event {
        type_: EventType::Normal,
        reason: "Greeted".to_owned(),
        note: None,
        action: "Greet".to_owned(),
        secondary: None,
    };
    let about = map.object_ref(&());
    greeter.recorder.publish(&greeted, &about).await?;
    Ok(Action::await_change())
}

async fn part(map: &ConfigMap, greeter: &Greeter) -> kube::Result<Action> {
    let maps = Api::<ConfigMap>::default_namespaced(greeter.client.clone());
    let data = BTreeMap::from([(map.name_any(), &greeter.name)]);
    let record = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "farewells"}, "data": data});
    let apply = PatchParams::apply(&map.name_any());
    maps.patch("farewells", &apply, &Patch::Apply(&record))
        .await?;
    Ok(Action::await_change())
}
