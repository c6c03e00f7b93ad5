//! Two control planes on three members of an etcd cluster: members and control planes are killed and cut off while clients
//! write, read and watch. Nothing that was acknowledged is lost, no consistent read is stale, no watch misses an event, and
//! scheduler and controllers have one leader.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod history;
mod load;
mod machines;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod};
use kernelet_tests::scenario::eventually;
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use load::Record;
use machines::{Machines, PATIENCE};

/// How long each kind of trouble lasts: long enough that etcd elects another leader.
const TROUBLE: Duration = Duration::from_secs(4);
/// Writers of each control plane.
const WRITERS: u64 = 2;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_read_is_stale() {
    let Some(mut machines) = Machines::make() else {
        return;
    };
    let runtime = Runtime::new().unwrap();
    for member in 0..3 {
        machines.start_member(member);
    }
    machines.start_server(0);
    machines.await_server(0);
    a_stranger_is_refused(&mut machines);
    machines.start_server(1);
    machines.await_server(1);

    let clients: Vec<_> = (0..2)
        .map(|at| runtime.block_on(load::client(&machines.kubeconfig(at))))
        .collect();
    let record = Record::new();
    runtime.block_on(record.begin(&load::maps(&clients[0])));
    let begun: Vec<_> = record.operations();
    assert_eq!(record.acknowledged(), load::KEYS.len(), "{begun:?}");

    let (mut tasks, mut writers) = (JoinSet::new(), JoinSet::new());
    let (raw, typed) = (
        load::heard("a raw watch", newest(&begun)),
        load::heard("kube-rs", 0),
    );
    let lists = Arc::new(Mutex::new(0));
    tasks.spawn_on(
        load::watch_raw(load::maps(&clients[0]), raw.clone()),
        runtime.handle(),
    );
    let watch = load::watch_runtime(load::maps(&clients[0]), typed.clone(), lists.clone());
    tasks.spawn_on(watch, runtime.handle());
    eventually("kube-rs has listed", PATIENCE, || {
        match *lists.lock().unwrap() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    let all = 2 * WRITERS;
    for number in 0..all {
        let api = load::maps(&clients[(number % 2) as usize]);
        writers.spawn_on(record.clone().work(api, number, all), runtime.handle());
    }
    // Each trouble is over when writes are acknowledged again; the writers go on meanwhile.
    let goes_on = |why: &str, tasks: &mut JoinSet<()>| {
        let before = record.acknowledged();
        eventually(why, PATIENCE, || {
            if let Some(ended) = tasks.try_join_next() {
                panic!("a client ended: {ended:?}");
            }
            match record.acknowledged() - before {
                enough if enough >= 20 => Ok(()),
                few => Err(format!("{few} writes")),
            }
        });
    };
    goes_on("writes are acknowledged", &mut tasks);
    for member in 0..3 {
        machines.members[member].end(Signal::KILL);
        goes_on("writes without a member", &mut tasks);
        machines.start_member(member);
        goes_on("writes with it again", &mut tasks);
    }
    for member in 0..3 {
        machines.members[member].connect(false);
        std::thread::sleep(TROUBLE);
        goes_on("writes with a member cut off", &mut tasks);
        machines.members[member].connect(true);
        goes_on("writes with it back", &mut tasks);
    }
    // Watchers are at the one that is killed.
    machines.servers[0].end(Signal::KILL);
    goes_on("writes through the other control plane", &mut tasks);
    machines.start_server(0);
    machines.await_server(0);
    goes_on("writes through both", &mut tasks);

    record.end();
    let ended = runtime.block_on(writers.join_all());
    assert_eq!(ended.len() as u64, all);
    // The last word: what each control plane says now, and what the watchers have heard by then.
    for client in &clients {
        let api = load::maps(client);
        eventually("a list", PATIENCE, || {
            match runtime.block_on(record.list(&api)) {
                true => Ok(()),
                false => Err("no answer".to_owned()),
            }
        });
    }
    let due = newest(&record.operations());
    for heard in [&raw, &typed] {
        eventually("the watches are told everything", PATIENCE, || {
            let heard = heard.lock().unwrap();
            match heard.events.last() {
                Some((_, revision, _)) if *revision >= due => Ok(()),
                last => Err(format!("{}: {last:?} of {due}", heard.who)),
            }
        });
    }
    runtime.block_on(tasks.shutdown());
    let watches = [&raw, &typed].map(|heard| heard.lock().unwrap().clone());
    let wrong = history::check(&record.operations(), &watches);
    assert!(
        wrong.is_empty(),
        "{} things are wrong: {:?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    assert_eq!(*lists.lock().unwrap(), 1, "kube-rs had to list again");
    println!(
        "{} operations, {} writes acknowledged",
        record.operations().len(),
        record.acknowledged()
    );

    one_takes_over(&mut machines, &runtime, &clients);
}

/// The newest revision that is known.
fn newest(operations: &[history::Operation]) -> u64 {
    let revisions = operations
        .iter()
        .filter_map(|operation| match &operation.what {
            history::What::Write {
                outcome: history::Outcome::Acknowledged(revision),
                ..
            } => Some(*revision),
            _ => None,
        });
    revisions.max().unwrap_or(0)
}

/// A control plane with keys of its own does not serve the cluster's objects.
fn a_stranger_is_refused(machines: &mut Machines) {
    machines.start_server(1);
    eventually("the stranger ends", PATIENCE, || {
        match machines.servers[1].is_running() {
            true => Err("it runs".to_owned()),
            false => Ok(()),
        }
    });
    let said = machines.log(&machines.servers[1]);
    assert!(
        said.contains("has another authority than this server"),
        "{said}"
    );
    machines.wipe(1);
    machines.share_keys(1);
}

/// Each is stopped in turn: the other is alone behind the service, and its scheduler and controllers work at once.
fn one_takes_over(machines: &mut Machines, runtime: &Runtime, clients: &[Client]) {
    let both: Vec<String> = machines
        .servers
        .iter()
        .map(|server| server.address.to_string())
        .collect();
    let lead_to = |client: &Client, wanted: &[String]| {
        let api: Api<Endpoints> = Api::namespaced(client.clone(), "default");
        eventually(
            &format!("the service leads to {wanted:?}"),
            PATIENCE,
            || match runtime.block_on(api.get("kubernetes")) {
                Ok(found) if addresses(&found) == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
    };
    lead_to(&clients[0], &both);
    for stopped in 0..2 {
        let other = 1 - stopped;
        machines.servers[stopped].end(Signal::TERM);
        lead_to(&clients[other], &both[other..=other]);
        let name = format!("after-{stopped}");
        let deployments: Api<Deployment> = Api::namespaced(clients[other].clone(), "default");
        let (how, deployment) = (PostParams::default(), deployment(&name));
        let made = runtime.block_on(deployments.create(&how, &deployment));
        made.unwrap();
        let pods: Api<Pod> = Api::namespaced(clients[other].clone(), "default");
        let params = ListParams::default().labels(&format!("app={name}"));
        eventually("scheduler and controllers work", PATIENCE, || {
            let found = runtime.block_on(pods.list(&params));
            let found = found.map_err(|error| error.to_string())?.items;
            // There is no node: that is what the scheduler says.
            match found.len() == 2 && found.iter().all(is_unschedulable) {
                true => Ok(()),
                false => Err(format!("{} pods: {found:?}", found.len())),
            }
        });
        machines.start_server(stopped);
        machines.await_server(stopped);
    }
}

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let subsets = endpoints.subsets.iter().flatten();
    let addresses = subsets.flat_map(|subset| subset.addresses.iter().flatten());
    addresses.map(|address| address.ip.clone()).collect()
}

fn is_unschedulable(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut reasons = conditions.filter_map(|condition| condition.reason.as_deref());
    reasons.any(|reason| reason == "Unschedulable")
}

fn deployment(name: &str) -> Deployment {
    let labels = json!({"app": name});
    let deployment = json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    serde_json::from_value(deployment).unwrap()
}
