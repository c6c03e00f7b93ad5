//! Whatever is killed comes back, and nothing is dropped meanwhile.

use kernelet_tests::Program;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::Value;

use crate::application::{Pod, REPAIR, application, await_answers, await_ready, call, pods};

fn frontend_on(pods: &[Pod], node: &str) -> Pod {
    pods.iter()
        .find(|pod| pod.app == "frontend" && pod.node == node)
        .cloned()
        .unwrap()
}

fn container_ids(scenario: &Scenario) -> Vec<String> {
    let mut ids: Vec<String> = scenario
        .list("pods")
        .iter()
        .flat_map(|pod| {
            pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .filter_map(|container| container["containerID"].as_str().map(str::to_owned))
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_deleted_pod_is_replaced_and_leaves_the_service() {
    let Some(scenario) = application("khp", 104, &[]) else {
        return;
    };
    let before = pods(&scenario);
    let gone = before.iter().find(|pod| pod.app == "backend").unwrap();
    scenario.kubectl(&format!("delete pod {} --wait=false", gone.name));
    let after = eventually("another backend is Ready", REPAIR, || {
        let pods = pods(&scenario);
        let ready = pods
            .iter()
            .filter(|pod| pod.app == "backend" && pod.ready && pod.name != gone.name)
            .count();
        if ready == 3 {
            Ok(pods)
        } else {
            Err(format!("{pods:?}"))
        }
    });
    let frontend = after.iter().find(|pod| pod.app == "frontend").unwrap();
    await_answers(&scenario, frontend);
}

#[test]
fn killing_the_agent_under_load_drops_nothing_and_restarts_nothing() {
    let Some(mut scenario) = application("kha", 105, &[]) else {
        return;
    };
    let frontend = frontend_on(&pods(&scenario), "worker-1");
    await_answers(&scenario, &frontend);
    let containers = container_ids(&scenario);

    scenario
        .kill("worker-1", Program::Agent, rustix::process::Signal::KILL)
        .unwrap();
    let calls = call(&scenario, &frontend, 500).unwrap();
    assert_eq!(calls.failures, 0, "with the agent dead: {calls:?}");

    let during = std::thread::scope(|scope| {
        let cluster = kernelet_tests::Cluster::clone(&scenario);
        let frontend = frontend.clone();
        let load = scope.spawn(move || {
            let url = format!("http://{}:3000/calls?count=2000", frontend.address);
            let node = cluster.node(&frontend.node).unwrap();
            let answer = node
                .inside(|| minreq::get(&url).with_timeout(60).send())
                .unwrap()
                .unwrap();
            serde_json::from_slice::<frontend_backend::Calls>(answer.as_bytes()).unwrap()
        });
        scenario.restart("worker-1", Program::Agent).unwrap();
        load.join().unwrap()
    });
    assert_eq!(during.failures, 0, "while the agent came back: {during:?}");
    await_ready(&scenario);
    assert_eq!(
        container_ids(&scenario),
        containers,
        "no container was restarted"
    );
    eventually("the new agent knows the services", REPAIR, || {
        let listed = scenario
            .try_kernelet("worker-1", "service list")?
            .to_string();
        if listed.contains("\"backend\"") {
            Ok(())
        } else {
            Err(listed)
        }
    });
    let names = scenario.kernelet("worker-1", "service show backend");
    assert_eq!(names["ports"][0]["backends"].as_array().unwrap().len(), 3);
}

#[test]
fn killing_the_control_plane_loses_nothing_and_traffic_goes_on() {
    let Some(mut scenario) = application("khc", 106, &[]) else {
        return;
    };
    let frontend = frontend_on(&pods(&scenario), "worker-2");
    let containers = container_ids(&scenario);
    scenario.kubectl("create configmap kept --from-literal=a=b");

    scenario
        .kill(
            "control-plane",
            Program::ControlPlane,
            rustix::process::Signal::KILL,
        )
        .unwrap();
    let calls = call(&scenario, &frontend, 200).unwrap();
    assert_eq!(calls.failures, 0, "without an API server: {calls:?}");
    scenario
        .restart("control-plane", Program::ControlPlane)
        .unwrap();

    assert_eq!(scenario.get("configmap kept")["data"]["a"], "b");
    await_ready(&scenario);
    assert_eq!(
        container_ids(&scenario),
        containers,
        "no container was restarted"
    );
    scenario.kubectl("scale deployment backend --replicas=4");
    scenario.kubectl("rollout status deployment backend --timeout=60s");
}

#[test]
fn killing_containerd_restarts_no_container() {
    let Some(mut scenario) = application("khd", 107, &[]) else {
        return;
    };
    let frontend = frontend_on(&pods(&scenario), "worker-1");
    let containers = container_ids(&scenario);

    scenario
        .kill(
            "worker-1",
            Program::Containerd,
            rustix::process::Signal::KILL,
        )
        .unwrap();
    let calls = call(&scenario, &frontend, 200).unwrap();
    assert_eq!(calls.failures, 0, "without containerd: {calls:?}");
    scenario.restart("worker-1", Program::Containerd).unwrap();

    await_ready(&scenario);
    assert_eq!(
        container_ids(&scenario),
        containers,
        "no container was restarted"
    );
    // The node still starts pods.
    scenario.kubectl("rollout restart deployment backend");
    scenario.kubectl("rollout status deployment backend --timeout=60s");
}

#[test]
fn a_silent_nodes_pods_leave_the_service_and_are_replaced() {
    let Some(mut scenario) = application("khn", 108, &["--node-monitor-grace-period=15"]) else {
        return;
    };
    // By default a pod tolerates an unreachable node for five minutes.
    let soon = r#"{"spec": {"template": {"spec": {"tolerations": [
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    ]}}}}"#;
    scenario.kubectl_args(&["patch", "deployment", "backend", "-p", soon]);
    scenario.kubectl("rollout status deployment backend --timeout=60s");
    let frontend = frontend_on(&await_ready(&scenario), "worker-1");

    scenario
        .kill("worker-2", Program::Agent, rustix::process::Signal::KILL)
        .unwrap();
    eventually("the node's pods leave the service", REPAIR, || {
        let shown = scenario.try_kernelet("worker-1", "service show backend")?;
        let backends = shown["ports"][0]["backends"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        // Draining: no new connection goes there.
        let offered =
            |backend: &Value| backend["node"] == "worker-2" && backend["state"] != "draining";
        match backends.iter().any(offered) {
            false => Ok(()),
            true => Err(shown.to_string()),
        }
    });
    eventually("three backends are Ready on the other node", REPAIR, || {
        let pods = pods(&scenario);
        let ready = pods
            .iter()
            .filter(|pod| pod.app == "backend" && pod.node == "worker-1" && pod.ready)
            .count();
        if ready == 3 {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    });
    await_answers(&scenario, &frontend);

    scenario.restart("worker-2", Program::Agent).unwrap();
    scenario.kubectl("wait --for=condition=Ready node/worker-2 --timeout=30s");
    eventually("the pods that were replaced are gone", REPAIR, || {
        let running = scenario.try_kernelet("worker-2", "pod list")?;
        let count = running["pods"].as_array().map_or(0, Vec::len);
        if count
            == pods(&scenario)
                .iter()
                .filter(|pod| pod.node == "worker-2")
                .count()
        {
            Ok(())
        } else {
            Err(running.to_string())
        }
    });
}
