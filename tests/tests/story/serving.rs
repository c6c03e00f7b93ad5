//! The application serves, node-local first, and the kernel's counters agree.

use std::collections::BTreeMap;

use crate::application::{Load, Pod, application, await_answers, await_ready, call, pods};

#[test]
fn a_frontend_reaches_the_backend_of_its_own_node_by_name() {
    let Some(scenario) = application("ksv", 101, &[]) else {
        return;
    };
    let pods = pods(&scenario);
    let backend_nodes: Vec<&str> = pods
        .iter()
        .filter(|pod| pod.app == "backend")
        .map(|pod| pod.node.as_str())
        .collect();
    assert!(
        ["worker-1", "worker-2"]
            .iter()
            .all(|node| backend_nodes.contains(node)),
        "spread over nodes: {pods:?}"
    );

    let mut seen = BTreeMap::<(String, String), u64>::new();
    for frontend in pods.iter().filter(|pod| pod.app == "frontend") {
        let calls = call(&scenario, frontend, 500).unwrap();
        assert_eq!(calls.failures, 0, "{calls:?}");
        assert_eq!(
            calls.frontend.node, frontend.node,
            "the downward API tells the node"
        );
        let local: u64 = calls
            .answers
            .iter()
            .filter(|one| one.backend.node == frontend.node)
            .map(|one| one.count)
            .sum();
        assert!(local >= 475, "{local} of 500 stayed on the node: {calls:?}");
        for one in &calls.answers {
            *seen
                .entry((frontend.node.clone(), one.backend.pod.clone()))
                .or_default() += one.count;
        }
    }

    let names: BTreeMap<&str, &str> = pods
        .iter()
        .map(|pod| (pod.address.as_str(), pod.name.as_str()))
        .collect();
    let mut counted = BTreeMap::<(String, String), u64>::new();
    for node in ["worker-1", "worker-2"] {
        let shown = scenario.kernelet(node, "service show backend");
        for backend in shown["ports"][0]["backends"].as_array().unwrap() {
            let address = backend["address"]
                .as_str()
                .unwrap()
                .split(':')
                .next()
                .unwrap();
            let opens = backend["opens"].as_u64().unwrap_or(0);
            if opens > 0 {
                counted.insert((node.to_owned(), names[address].to_owned()), opens);
            }
        }
    }
    assert_eq!(counted, seen, "the kernel counted what the frontends saw");
}

#[test]
fn without_a_ready_backend_a_call_is_refused_at_once_and_counted() {
    let Some(scenario) = application("ksn", 102, &[]) else {
        return;
    };
    let frontend = pods(&scenario)
        .into_iter()
        .find(|pod| pod.app == "frontend")
        .unwrap();
    await_answers(&scenario, &frontend);

    scenario.kubectl("scale deployment backend --replicas=0");
    scenario.kubectl("wait --for=delete pod -l app=backend --timeout=60s");
    let calls = kernelet_tests::scenario::eventually(
        "calls are refused",
        crate::application::REPAIR,
        || {
            let calls = call(&scenario, &frontend, 10)?;
            if calls.failures == 10 {
                Ok(calls)
            } else {
                Err(format!("{calls:?}"))
            }
        },
    );
    assert!(
        calls
            .first_failure
            .unwrap()
            .to_lowercase()
            .contains("refused")
    );
    let shown = scenario.kernelet(&frontend.node, "service show backend");
    assert!(
        shown["ports"][0]["service"]["refused"].as_u64().unwrap() >= 10,
        "{shown}"
    );

    scenario.kubectl("scale deployment backend --replicas=3");
    await_answers(&scenario, &frontend);
}

#[test]
fn a_rolling_update_under_load_replaces_every_backend_and_fails_no_call() {
    let Some(scenario) = application("ksr", 103, &[]) else {
        return;
    };
    let before = pods(&scenario);
    let load: Vec<_> = before
        .iter()
        .filter(|pod| pod.app == "frontend")
        .inspect(|frontend| await_answers(&scenario, frontend))
        .map(|frontend| Load::start(&scenario, frontend))
        .collect();
    for round in 0..2 {
        scenario.kubectl(&format!("set env deployment backend ROUND={round}"));
        scenario.kubectl("rollout status deployment backend --timeout=60s");
    }
    let after = await_ready(&scenario);
    for one in load {
        let seen = one.stop();
        let answers: u64 = seen.answers.iter().map(|one| one.count).sum();
        assert_eq!(
            seen.failures, 0,
            "of {answers} calls and these, the first: {:?}; {seen:?}",
            seen.first_failure
        );
        assert!(answers > 0);
    }
    let replaced = |pod: &&Pod| pod.app == "frontend" || before.iter().all(|b| b.name != pod.name);
    assert!(after.iter().all(|pod| replaced(&pod)), "{after:?}");
}
