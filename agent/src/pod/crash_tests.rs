//! Agents that are killed at each step of what they do, against a real containerd.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::demand::EVICTED;
use super::static_tests::{NAME, manifest, ready};
use super::testing::node::{FOREVER, FakeNetwork, Node, is_ready, spec};
use super::testing::uid;
use super::{Demand, Demands, Eviction, Manager, PodTable};
use crate::network::{NetworkError, PodNetwork};
use crate::runtime::testing::relay;
use crate::testing::steps::{Cut, Moment, Steps};

/// An agent that can be killed: nothing of it goes on, and its connections end.
struct Mortal {
    runtime: Option<tokio::runtime::Runtime>,
    steps: Arc<Steps>,
    demands: oneshot::Receiver<Demands>,
    _relay: AbortOnDropHandle<()>,
}

impl Mortal {
    fn start(node: &Node) -> Mortal {
        let steps = Arc::<Steps>::default();
        let socket = node.daemon.path().join("relay.sock");
        let _ = fs::remove_file(&socket);
        let relay = relay::start(&socket, &node.daemon.socket(), steps.clone());
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        let (client, settings) = (node.api.client_by(steps.clone()), node.settings());
        let network = Stepping(node.network.clone(), steps.clone());
        let guard = runtime.enter();
        let containerd = node.daemon.client_at(&socket);
        let (tell, demands) = oneshot::channel();
        runtime.spawn(async move {
            containerd.resume_logs();
            containerd.end_orphans().await;
            let (containerd, network) = (Arc::new(containerd), Arc::new(network));
            let table = PodTable::default();
            let manager = Manager::start(client, settings, containerd, network, table);
            let _ = tell.send(manager.demands());
            manager.ended().await;
        });
        drop(guard);
        Mortal {
            runtime: Some(runtime),
            steps,
            demands,
            _relay: relay,
        }
    }

    /// Lets it work until all is done, or until it is cut off; then it is killed. Gives its steps.
    async fn work(self, cut: Option<Cut>, done: impl Future<Output = ()>) -> Vec<String> {
        self.steps.begin(cut);
        tokio::select! {
            () = done => {}
            () = self.steps.cut_off() => {}
        }
        self.steps.taken()
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A network whose changes are steps.
struct Stepping(Arc<FakeNetwork>, Arc<Steps>);

#[async_trait::async_trait]
impl PodNetwork for Stepping {
    async fn attach(&self, uid: &str, netns: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        self.1.take("attach", self.0.attach(uid, netns)).await
    }

    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        self.1.take("detach", self.0.detach(uid)).await
    }
}

/// The containers of the pod, with the number of times that each is to have run.
const RUNS: [&str; 3] = ["init", "main", "debug"];

/// A pod with everything that takes steps of its own. Its containers note their starts and its hooks their runs in `notes`,
/// which stays when the pod goes.
fn pod(notes: &Path) -> Value {
    let note = |what: &str| format!("echo {what} >>/notes/{what}");
    let hook = |what: &str| json!({"exec": {"command": ["/bin/sh", "-c", note(what)]}});
    let mounts = json!([
        {"name": "notes", "mountPath": "/notes"}, {"name": "account", "mountPath": "/account"},
        {"name": "memory", "mountPath": "/memory", "subPath": "part"},
        {"name": "image", "mountPath": "/image"},
    ]);
    let container = |name: &str, then: &str| {
        let script = format!(
            "test -s /account/token -a -s /image/etc/passwd || exit 9; {}; {then}",
            note(name)
        );
        json!({"name": name, "image": "busybox:test", "args": [script], "volumeMounts": mounts})
    };
    let mut main = container("main", FOREVER);
    main["lifecycle"] = json!({"postStart": hook("started"), "preStop": hook("stopping")});
    main["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
    main["resources"] = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
    json!({
        "restartPolicy": "Never",
        "serviceAccountName": "robot",
        "terminationGracePeriodSeconds": 30,
        "volumes": [
            {"name": "notes", "hostPath": {"path": notes}},
            {"name": "account", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "authority"}},
            ]}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "image", "image": {"reference": "busybox:test", "pullPolicy": "IfNotPresent"}},
        ],
        "initContainers": [container("init", "true")],
        "containers": [main],
        "ephemeralContainers": [container("debug", FOREVER)],
    })
}

/// What an agent is killed at while it makes a pod, and what the next one while it removes it.
#[derive(Clone, Debug, Default)]
struct Cuts {
    making: Option<Cut>,
    removing: Option<Cut>,
}

/// The life of a pod whose agents are killed; gives the steps of making and of removing it.
async fn live(node: &Node, name: &str, host_users: bool, cuts: Cuts) -> [Vec<String>; 2] {
    let notes = node.daemon.path().join("notes").join(name);
    fs::create_dir_all(&notes).unwrap();
    // Whose users are others is a stranger here.
    fs::set_permissions(&notes, fs::Permissions::from_mode(0o777)).unwrap();
    let note = |what: &str| fs::read_to_string(notes.join(what)).unwrap_or_default();
    let mut whole = pod(&notes);
    whole["hostUsers"] = json!(host_users);
    node.api.create(name, whole);
    let is_made = |status: &PodStatus| {
        let debug = status.ephemeral_container_statuses.iter().flatten().next();
        let state = debug.and_then(|debug| debug.state.as_ref());
        is_ready(status) && state.is_some_and(|state| state.running.is_some())
    };
    let made = async {
        node.api.wait(name, "made", is_made).await;
        eventually("the hook after the start", || !note("started").is_empty()).await;
    };
    let removed = async {
        node.api.delete(name, 30);
        node.api.wait_gone(name).await;
    };

    let steps = Mortal::start(node).work(cuts.making.clone(), made).await;
    let agent = Mortal::start(node);
    node.api.wait(name, "made", is_made).await;
    let users = node
        .daemon
        .path()
        .join("pods")
        .join(uid(name))
        .join("userns");
    assert_eq!(users.exists(), !host_users);
    eventually("the hook after the start", || !note("started").is_empty()).await;
    let status = node.api.pod(name).unwrap().status.unwrap();
    let all = [
        status.init_container_statuses,
        status.container_statuses,
        status.ephemeral_container_statuses,
    ];
    for container in all.into_iter().flatten().flatten() {
        assert_eq!(container.restart_count, 0, "{cuts:?}: {container:?}");
    }
    let last_steps = agent.work(cuts.removing.clone(), removed).await;
    let _agent = Mortal::start(node);
    node.api.wait_gone(name).await;
    for what in RUNS {
        assert_eq!(note(what), format!("{what}\n"), "{cuts:?}");
    }
    assert!(!note("stopping").is_empty(), "{cuts:?}");
    eventually_nothing(node, &cuts).await;
    [steps, last_steps]
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..750 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    panic!("not within 30 s: {what}");
}

async fn eventually_nothing(node: &Node, cuts: &Cuts) {
    for _ in 0..500 {
        if node.leftovers().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    panic!("{cuts:?}: {:#?}", node.leftovers());
}

/// Each step once more with the agent killed after it, and those that take long with the agent killed in their middle.
fn cuts(steps: &[String], counts: impl Fn(&str) -> bool) -> Vec<Cut> {
    let is_long = |step: &str| step.starts_with("Tasks/");
    let mut cuts = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let nth = steps[..at].iter().filter(|before| *before == step).count();
        for moment in [Moment::After, Moment::During] {
            if counts(step) && (moment == Moment::After || is_long(step)) {
                let step = step.clone();
                cuts.push(Cut { step, nth, moment });
            }
        }
    }
    cuts
}

impl Node {
    /// Whatever there is of pods on the node.
    fn leftovers(&self) -> Vec<String> {
        let mut found = self.left_on_disk();
        found.extend(self.network.0.lock().unwrap().clone());
        found.extend(self.daemon.leftovers());
        let entries = fs::read_dir(self.daemon.path()).into_iter().flatten();
        let names = entries.flatten().map(|it| it.path().display().to_string());
        // Where layers are mounted under a pod's ids for a while.
        found.extend(names.filter(|name| name.contains("/layers-")));
        found
    }
}

/// Lives of pods, with agents killed after each step that counts.
async fn live_through_all(node: &Node, host_users: bool, counts: impl Fn(&str) -> bool) {
    node.api
        .put_config_map("authority", json!({"ca.crt": "authority"}));
    let kind = if host_users { "killed" } else { "mapped" };
    let name = format!("{kind}-whole");
    let [making, removing] = live(node, &name, host_users, Cuts::default()).await;
    // Each agent takes in the archives of images when it begins, whatever it does besides.
    let is_import = |step: &str| {
        ["Leases/", "Content/", "Images/"]
            .iter()
            .any(|of| step.starts_with(of))
    };
    let mut making = cuts(&making, &counts).into_iter();
    let mut removing = cuts(&removing, |step| counts(step) && !is_import(step)).into_iter();
    for round in 0.. {
        let cuts = Cuts {
            making: making.next(),
            removing: removing.next(),
        };
        if cuts.making.is_none() && cuts.removing.is_none() {
            break;
        }
        live(node, &format!("{kind}-{round}"), host_users, cuts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_after_each_step_of_making_and_of_removing_a_pod() {
    let Some(node) = Node::new().await else {
        return;
    };
    live_through_all(&node, true, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_after_each_step_of_a_pod_with_users_of_its_own() {
    let Some(node) = Node::new().await else {
        return;
    };
    // Roots are reached through it.
    let below = node.daemon.path();
    fs::set_permissions(below, fs::Permissions::from_mode(0o711)).unwrap();
    live_through_all(&node, false, |_| true).await;
}

/// Only what the API is told: the rest is as for any pod.
fn tells(step: &str) -> bool {
    step.contains(" pods/")
}

/// The life of a pod from a file.
async fn live_by_file(node: &Node, cuts: Cuts) -> [Vec<String>; 2] {
    node.put_manifest(Some(&manifest(FOREVER)));
    let made = async {
        node.mirror(ready).await;
    };
    let steps = Mortal::start(node).work(cuts.making.clone(), made).await;
    let agent = Mortal::start(node);
    let mirror = node.mirror(ready).await;
    let container = &mirror.status.unwrap().container_statuses.unwrap()[0];
    assert_eq!(container.restart_count, 0, "{cuts:?}");
    assert_eq!(node.running().await.len(), 1, "{cuts:?}");
    let removed = async {
        node.put_manifest(None);
        node.api.wait_gone(NAME).await;
    };
    let last_steps = agent.work(cuts.removing.clone(), removed).await;
    let _agent = Mortal::start(node);
    node.api.wait_gone(NAME).await;
    eventually_nothing(node, &cuts).await;
    [steps, last_steps]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_whenever_it_has_told_of_a_pod_from_a_file() {
    let Some(node) = Node::new().await else {
        return;
    };
    let [making, removing] = live_by_file(&node, Cuts::default()).await;
    for making in cuts(&making, tells) {
        let making = Some(making);
        live_by_file(
            &node,
            Cuts {
                making,
                removing: None,
            },
        )
        .await;
    }
    for removing in cuts(&removing, tells) {
        let removing = Some(removing);
        live_by_file(
            &node,
            Cuts {
                making: None,
                removing,
            },
        )
        .await;
    }
}

/// The end of a pod that is evicted.
async fn be_evicted(node: &Node, name: &str, cut: Option<Cut>) -> Vec<String> {
    let mut hungry = spec(FOREVER, "Always");
    hungry["volumes"] = json!([{"name": "cache", "emptyDir": {}}]);
    node.api.create(name, hungry);
    let mut agent = Mortal::start(node);
    node.api.wait(name, "ready", is_ready).await;
    let by = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30);
    let message = "The node was low on resource: memory. ".to_owned();
    let eviction = Eviction {
        reason: EVICTED,
        message,
        by,
    };
    let demand = Demand::Evict {
        uid: uid(name),
        eviction,
    };
    let demands = (&mut agent.demands).await.unwrap();
    let is_evicted = |status: &PodStatus| status.reason.as_deref() == Some("Evicted");
    let volume = node
        .daemon
        .path()
        .join(format!("pods/{}/volumes", uid(name)));
    let evicted = async {
        assert!(demands.ask(demand).await);
        node.api.wait(name, "evicted", is_evicted).await;
        eventually("its volumes are gone", || !volume.exists()).await;
        eventually("its containers are gone", || {
            node.daemon
                .leftovers()
                .iter()
                .all(|left| left.contains("kubepods"))
        })
        .await;
    };
    let cuts = Cuts {
        making: None,
        removing: cut,
    };
    let steps = agent.work(cuts.removing.clone(), evicted).await;
    // Once the API was told, it is so for good. Otherwise the pod runs, until the node is found short again.
    let is_told = is_evicted(&node.api.pod(name).unwrap().status.unwrap());
    let _agent = Mortal::start(node);
    if is_told {
        eventually("its volumes are gone", || !volume.exists()).await;
        let status = node.api.pod(name).unwrap().status.unwrap();
        assert!(is_evicted(&status), "{cuts:?}: {status:?}");
        assert_eq!(node.running().await, Vec::<String>::new(), "{cuts:?}");
    } else {
        node.api.wait(name, "ready", is_ready).await;
    }
    node.api.delete(name, 5);
    node.api.wait_gone(name).await;
    eventually_nothing(node, &cuts).await;
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_be_killed_after_each_step_of_evicting_a_pod() {
    let Some(node) = Node::new().await else {
        return;
    };
    let steps = be_evicted(&node, "evicted-whole", None).await;
    for (round, cut) in cuts(&steps, |_| true).into_iter().enumerate() {
        be_evicted(&node, &format!("evicted-{round}"), Some(cut)).await;
    }
}
