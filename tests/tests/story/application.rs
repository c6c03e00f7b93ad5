//! The sample application in a cluster, and what its frontends see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use frontend_backend::Calls;
use kernelet_tests::scenario::{Scenario, eventually, example};
use kernelet_tests::{Cluster, Spec};
use serde_json::Value;

/// How long the cluster may take to repair itself before a scenario calls it broken. No figure: see the benchmarks for those.
pub const REPAIR: Duration = Duration::from_secs(60);

/// A pod of the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub app: String,
    pub node: String,
    pub address: String,
    pub ready: bool,
    pub restarts: u64,
}

impl Pod {
    fn of(pod: &Value) -> Pod {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let containers = pod["status"]["containerStatuses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        Pod {
            name: text(&pod["metadata"]["name"]),
            app: text(&pod["metadata"]["labels"]["app"]),
            node: text(&pod["spec"]["nodeName"]),
            address: text(&pod["status"]["podIP"]),
            ready: conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
                && pod["metadata"]["deletionTimestamp"].is_null(),
            restarts: containers
                .iter()
                .filter_map(|container| container["restartCount"].as_u64())
                .sum(),
        }
    }
}

/// A cluster with three frontends and three backends, all Ready. `None`: skipped.
pub fn application(prefix: &str, subnet: u8, args: &[&str]) -> Option<Scenario> {
    let mut spec = Spec::scenario(prefix, subnet, 2);
    spec.control_plane_args = args.iter().map(|&arg| arg.to_owned()).collect();
    let scenario = Scenario::begin(spec)?;
    for manifest in ["backend.yaml", "backend-service.yaml", "frontend.yaml"] {
        scenario.kubectl(&format!("apply -f {}", example(manifest).display()));
    }
    await_ready(&scenario);
    Some(scenario)
}

/// Waits until three frontends and three backends are Ready, and gives them.
pub fn await_ready(scenario: &Scenario) -> Vec<Pod> {
    eventually(
        "three frontends and three backends are Ready",
        REPAIR,
        || {
            let pods = pods(scenario);
            let ready = |app: &str| {
                pods.iter()
                    .filter(|pod| pod.app == app && pod.ready)
                    .count()
            };
            match (ready("frontend"), ready("backend")) {
                (3, 3) => Ok(pods.iter().filter(|pod| pod.ready).cloned().collect()),
                _ => Err(format!("{pods:?}")),
            }
        },
    )
}

/// All pods of the default namespace.
pub fn pods(scenario: &Scenario) -> Vec<Pod> {
    scenario.list("pods").iter().map(Pod::of).collect()
}

/// Has a frontend call the backend `count` times.
pub fn call(scenario: &Scenario, frontend: &Pod, count: u64) -> Result<Calls, String> {
    call_in(scenario, frontend, count)
}

fn call_in(cluster: &Cluster, frontend: &Pod, count: u64) -> Result<Calls, String> {
    let url = format!("http://{}:3000/calls?count={count}", frontend.address);
    let node = cluster
        .node(&frontend.node)
        .map_err(|error| error.to_string())?;
    let response = node
        .inside(|| minreq::get(&url).with_timeout(60).send())
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("{url}: {error}"))?;
    serde_json::from_slice(response.as_bytes()).map_err(|error| format!("{url}: {error}"))
}

/// Waits until a frontend gets an answer to every one of a few calls.
pub fn await_answers(scenario: &Scenario, frontend: &Pod) {
    eventually("the frontend's calls are answered", REPAIR, || {
        let calls = call(scenario, frontend, 20)?;
        match calls.failures {
            0 => Ok(()),
            _ => Err(format!("{calls:?}")),
        }
    });
}

/// A frontend that calls the backend without pause.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Calls>>,
}

impl Load {
    pub fn start(scenario: &Scenario, frontend: &Pod) -> Load {
        let (cluster, frontend) = (Cluster::clone(scenario), frontend.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                seen.push(call_in(&cluster, &frontend, 50).expect("the frontend is there"));
            }
            seen
        });
        Load { stop, thread }
    }

    /// All that it saw.
    pub fn stop(self) -> Calls {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the load does not panic");
        let sum = seen.into_iter().reduce(|mut sum, next| {
            sum.failures += next.failures;
            sum.first_failure = sum.first_failure.or(next.first_failure);
            sum.answers.extend(next.answers);
            sum
        });
        sum.expect("it called at least once")
    }
}
