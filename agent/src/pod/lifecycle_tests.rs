//! Plans and statuses of pods in particular situations.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec, PodStatus};
use serde_json::{Value, json};

use super::action::{Action, StopHow};
use super::demand::{EVICTED, Eviction, TERMINATED};
use super::ephemeral;
use super::observed::{CREATE_ERROR, Contents, Failure, ImageState, Observed, Sandbox, Volumes};
use super::plan::{Phase, phase, plan};
use super::refusals::refusals;
use super::resize;
use super::spec::{Goal, PodView, container_id, spec_hash};
use super::status::{Surroundings, status};
use crate::runtime::{Container, ContainerState, Exit, ExitCause};

const RUNNING: ContainerState = ContainerState::Running { pid: 1 };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + seconds).unwrap()
}

/// A pod of these containers, with a volume from a ConfigMap.
fn pod(policy: &str, init: Value, containers: Value) -> PodView {
    let object = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "volumes": [{"name": "v", "configMap": {"name": "absent"}}],
            "initContainers": init, "containers": containers,
        },
    });
    PodView::new(serde_json::from_value(object).unwrap()).unwrap()
}

fn one(policy: &str) -> PodView {
    pod(policy, json!([]), json!([{"name": "main", "image": "i:1"}]))
}

fn delete(pod: &mut PodView) {
    pod.object.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
}

fn container(pod: &PodView, name: &str, state: ContainerState) -> Container {
    let spec = pod
        .every_container()
        .find(|spec| spec.name == name)
        .unwrap();
    Container {
        id: container_id("u", name, 0),
        pod: pod.id.clone(),
        name: name.into(),
        attempt: 0,
        streak: 0,
        spec_hash: spec_hash(spec),
        image: "i:1".into(),
        image_id: String::new(),
        given: resize::note(spec),
        stop_signal: 15,
        user: None,
        created_at: at(0),
        earlier_boot: false,
        hook_due: false,
        state,
    }
}

fn exited(code: i32) -> ContainerState {
    ContainerState::Exited(Exit {
        code,
        at: at(5),
        cause: ExitCause::Process,
        message: String::new(),
    })
}

fn failure(retry_at: Timestamp) -> Failure {
    Failure {
        reason: "ContainerCreating",
        message: "no".into(),
        tries: 1,
        retry_at: Some(retry_at),
    }
}

fn ready() -> Sandbox {
    Sandbox::Ready {
        addresses: vec!["10.244.1.2".parse().unwrap()],
    }
}

fn tell(pod: &PodView, observed: &Observed, previous: &PodStatus) -> PodStatus {
    status(pod, observed, &Surroundings::default(), previous, at(10))
}

fn first(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

fn exit_code(status: &PodStatus) -> Option<i32> {
    Some(first(status).state.as_ref()?.terminated.as_ref()?.exit_code)
}

#[test]
fn a_running_pod_stays_in_service_when_its_sandbox_or_a_volume_fails() {
    let pod = one("Always");
    let mut observed = Observed {
        sandbox: ready(),
        volumes: Volumes::Ready,
        containers: vec![container(&pod, "main", RUNNING)],
        ..Observed::default()
    };
    let before = tell(&pod, &observed, &PodStatus::default());
    assert_eq!(before.pod_ip.as_deref(), Some("10.244.1.2"));

    // Another agent begins, and finds neither in order.
    observed.sandbox = Sandbox::Failed(failure(at(11)));
    observed.volumes = Volumes::Failed(failure(at(11)));
    assert_eq!(tell(&pod, &observed, &before), before);
    let next = plan(Some(&pod), Goal::Run, &observed, at(10));
    assert_eq!((next.actions, next.wake), (vec![], Some(at(11))));

    observed.containers.clear();
    let stopped = tell(&pod, &observed, &before);
    assert_eq!(stopped.pod_ip, None);
    assert_eq!(stopped.message.as_deref(), Some("no"));
}

#[test]
fn a_container_that_an_earlier_agent_did_not_start_is_made_anew_by_its_other_id() {
    let pod = one("Never");
    let mut observed = Observed {
        sandbox: ready(),
        volumes: Volumes::Ready,
        containers: vec![container(&pod, "main", ContainerState::Created)],
        contents: Contents::FreshUntil(at(70)),
        ..Observed::default()
    };
    observed.images.insert("i:1".into(), ImageState::Present);
    let actions = |observed: &Observed| plan(Some(&pod), Goal::Run, observed, at(10)).actions;
    let id = container_id("u", "main", 0);
    assert_eq!(actions(&observed), [Action::Start { id: id.clone() }]);
    observed.stale.insert(id.clone());
    assert_eq!(actions(&observed), [Action::Delete { id: id.clone() }]);
    observed.remove(&id);
    let run = Action::Run {
        container: "main".into(),
        attempt: 0,
        streak: 0,
    };
    assert_eq!(actions(&observed), [run], "it is no restart");
    let other = observed.next_id("u", "main", 0);
    assert_ne!(other, id);
    let mut second = container(&pod, "main", ContainerState::Created);
    second.id.clone_from(&other);
    observed.put(second);
    observed.remove(&other);
    assert_eq!(observed.next_id("u", "main", 0), id);
}

#[test]
fn volumes_are_prepared_for_a_container_that_is_to_start_and_only_then() {
    let pod = one("Always");
    let mut observed = Observed {
        sandbox: ready(),
        containers: vec![container(&pod, "main", RUNNING)],
        contents: Contents::FreshUntil(at(70)),
        ..Observed::default()
    };
    let actions = |observed: &Observed, now| plan(Some(&pod), Goal::Run, observed, now).actions;
    assert_eq!(actions(&observed, at(10)), []);

    observed.containers = vec![container(&pod, "main", exited(1))];
    let fetch = Action::FetchImage {
        container: "main".into(),
    };
    assert_eq!(
        actions(&observed, at(10)),
        [fetch, Action::PrepareVolumes],
        "both at once"
    );
    observed.images.insert("i:1".into(), ImageState::Present);
    observed.volumes = Volumes::Failed(failure(at(11)));
    assert_eq!(actions(&observed, at(10)), []);
    assert_eq!(actions(&observed, at(11)), [Action::PrepareVolumes]);
    observed.volumes = Volumes::Ready;
    assert!(matches!(
        &actions(&observed, at(11))[..],
        [Action::Run { attempt: 1, .. }]
    ));
}

#[test]
fn the_last_status_of_a_deleted_pod_tells_how_it_ended() {
    for (policy, code, phase) in [
        ("Always", 137, "Failed"),
        ("Never", 137, "Failed"),
        ("Always", 0, "Succeeded"),
    ] {
        let mut pod = one(policy);
        delete(&mut pod);
        let mut observed = Observed {
            sandbox: ready(),
            containers: vec![container(&pod, "main", exited(code))],
            ..Observed::default()
        };
        let ended = tell(&pod, &observed, &PodStatus::default());
        assert_eq!(ended.phase.as_deref(), Some(phase));
        assert_eq!(exit_code(&ended), Some(code));

        // The records go before the object does.
        observed.containers.clear();
        observed.sandbox = Sandbox::Gone;
        let last = tell(&pod, &observed, &ended);
        assert_eq!(last.container_statuses, ended.container_statuses);
        assert_eq!(
            (last.phase, last.pod_ip),
            (Some(phase.into()), Some("10.244.1.2".into()))
        );
    }
}

#[test]
fn a_deleted_pod_has_ended_only_when_nothing_of_it_runs() {
    let sidecar = json!([{"name": "side", "image": "i:1", "restartPolicy": "Always"}]);
    let mut pod = pod("Always", sidecar, json!([{"name": "main", "image": "i:1"}]));
    delete(&mut pod);
    let observed = Observed {
        containers: vec![
            container(&pod, "main", exited(0)),
            container(&pod, "side", RUNNING),
        ],
        ..Observed::default()
    };
    let status = tell(&pod, &observed, &PodStatus::default());
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn an_end_that_no_agent_lived_to_tell_is_told_as_unknown() {
    let mut pod = one("Never");
    let mut observed = Observed {
        containers: vec![container(&pod, "main", RUNNING)],
        ..Observed::default()
    };
    let before = tell(&pod, &observed, &PodStatus::default());
    delete(&mut pod);
    observed.containers.clear();
    let last = tell(&pod, &observed, &before);
    assert_eq!(last.phase.as_deref(), Some("Failed"));
    assert_eq!((exit_code(&last), first(&last).ready), (Some(137), false));

    let never_begun = tell(&pod, &observed, &PodStatus::default());
    assert_eq!(never_begun.phase.as_deref(), Some("Pending"));
}

#[test]
fn init_containers_run_again_after_the_machine_restarted() {
    let pod = pod(
        "Always",
        json!([{"name": "init", "image": "i:1"}]),
        json!([{"name": "main", "image": "i:1"}]),
    );
    let mut observed = Observed {
        sandbox: ready(),
        volumes: Volumes::Ready,
        containers: vec![
            container(&pod, "init", exited(0)),
            container(&pod, "main", exited(137)),
        ],
        contents: Contents::FreshUntil(at(70)),
        ..Observed::default()
    };
    let next = |observed: &Observed| {
        let mut observed = observed.clone();
        observed.images.insert("i:1".into(), ImageState::Present);
        plan(Some(&pod), Goal::Run, &observed, at(10)).actions
    };
    let run = |name: &str, attempt, streak| Action::Run {
        container: name.into(),
        attempt,
        streak,
    };
    assert_eq!(next(&observed), [run("main", 1, 1)]);

    for container in &mut observed.containers {
        container.earlier_boot = true;
    }
    assert_eq!(next(&observed), [run("init", 1, 0)]);
    let mut init = container(&pod, "init", RUNNING);
    (init.id, init.attempt) = ("second".into(), 1);
    observed.containers.push(init);
    assert_eq!(next(&observed), []);
    observed.containers[2].state = exited(0);
    assert_eq!(next(&observed), [run("main", 1, 1)]);
}

#[test]
fn sidecars_stop_after_the_main_containers_and_one_after_the_other() {
    let sidecar = |name: &str| json!({"name": name, "image": "i:1", "restartPolicy": "Always"});
    let pod = pod(
        "Always",
        json!([sidecar("first"), sidecar("second")]),
        json!([{"name": "main", "image": "i:1"}, {"name": "other", "image": "i:1"}]),
    );
    let names = ["first", "second", "main", "other"];
    let mut observed = Observed {
        containers: names.map(|name| container(&pod, name, RUNNING)).into(),
        ..Observed::default()
    };
    for turn in [vec!["main", "other"], vec!["second"], vec!["first"]] {
        let goal = Goal::Gone { by: at(60) };
        let actions = plan(Some(&pod), goal, &observed, at(10)).actions;
        let stopped: Vec<String> = actions
            .into_iter()
            .map(|action| match action {
                Action::Stop { id, .. } => id,
                other => panic!("{other:?}"),
            })
            .collect();
        let wanted: Vec<String> = turn.iter().map(|name| container_id("u", name, 0)).collect();
        assert_eq!(stopped, wanted);
        for id in stopped {
            observed.set_state(&id, exited(0));
        }
    }
}

#[test]
fn an_image_is_looked_for_again_when_its_container_could_not_be_made() {
    let pod = one("Always");
    let mut observed = Observed {
        sandbox: ready(),
        volumes: Volumes::Ready,
        ..Observed::default()
    };
    observed.images.insert("i:1".into(), ImageState::Present);
    let mut failure = failure(at(11));
    failure.reason = CREATE_ERROR;
    observed.fail("main".into(), failure);
    let actions = |now| plan(Some(&pod), Goal::Run, &observed, now).actions;
    assert_eq!(actions(at(10)), []);
    let fetch = Action::FetchImage {
        container: "main".into(),
    };
    assert_eq!(actions(at(11)), [fetch]);
}

#[test]
fn what_a_pod_asks_for_in_vain_is_told() {
    let mut pod = one("Always");
    assert_eq!(refusals(&pod, &pod.containers()[0]), [""; 0]);
    if let Some(spec) = &mut pod.object.spec {
        let asked = json!({
            "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}},
            "containers": [],
        });
        let asked: PodSpec = serde_json::from_value(asked).unwrap();
        spec.security_context = asked.security_context;
    }
    assert_eq!(
        refusals(&pod, &pod.containers()[0]),
        ["appArmorProfile RuntimeDefault is not supported on this node"]
    );
}

#[test]
fn an_ephemeral_container_runs_once_beside_the_others() {
    let mut object = one("Always").object;
    if let Some(spec) = &mut object.spec {
        let added =
            json!([{"name": "debug", "image": "i:1", "targetContainerName": "main", "tty": true}]);
        spec.ephemeral_containers = serde_json::from_value(added).unwrap();
    }
    let pod = PodView::new(object).unwrap();
    assert_eq!(ephemeral::target(&pod, "debug"), Some("main"));
    assert_eq!(ephemeral::target(&pod, "main"), None);
    assert_eq!(pod.ephemeral[0].tty, Some(true));

    let mut observed = Observed {
        sandbox: Sandbox::Ready { addresses: vec![] },
        volumes: Volumes::Ready,
        contents: Contents::FreshUntil(at(70)),
        ..Observed::default()
    };
    observed.images.insert("i:1".into(), ImageState::Present);
    let run = |name: &str| Action::Run {
        container: name.into(),
        attempt: 0,
        streak: 0,
    };
    let actions = |observed: &Observed| plan(Some(&pod), Goal::Run, observed, at(10)).actions;
    assert_eq!(actions(&observed), [run("debug"), run("main")]);

    for (name, state) in [
        ("main", ContainerState::Running { pid: 7 }),
        ("debug", exited(1)),
    ] {
        observed.put(container(&pod, name, state));
    }
    assert_eq!(actions(&observed), [], "it is not run again");
    assert_eq!(phase(&pod, &observed, at(10)), Phase::Active);
    let status = tell(&pod, &observed, &PodStatus::default());
    let told = &status.ephemeral_container_statuses.unwrap()[0];
    let end = told.state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((told.name.as_str(), end.exit_code), ("debug", 1));
}

#[test]
fn contents_of_volumes_are_looked_at_again_while_a_container_runs() {
    let pod = one("Always");
    let mut observed = Observed {
        sandbox: ready(),
        containers: vec![container(&pod, "main", RUNNING)],
        ..Observed::default()
    };
    let planned = |observed: &Observed, now| plan(Some(&pod), Goal::Run, observed, now);
    // An agent that starts does not know how old they are.
    let begin = planned(&observed, at(10));
    assert_eq!(begin.actions, [Action::RefreshVolumes]);
    observed.contents = Contents::FreshUntil(at(70));
    let later = planned(&observed, at(10));
    assert_eq!((later.actions, later.wake), (vec![], Some(at(70))));
    let due = planned(&observed, at(70));
    assert_eq!(due.actions, [Action::RefreshVolumes]);
    // They may show the pod's addresses, so the sandbox comes first.
    observed.sandbox = Sandbox::Unknown;
    let early = planned(&observed, at(70));
    assert_eq!(early.actions, [Action::PrepareSandbox]);
}

#[test]
fn a_pod_that_had_to_go_fails_for_good_and_leaves_the_disk() {
    for reason in [EVICTED, TERMINATED] {
        fails_for_good(reason);
    }
}

fn fails_for_good(reason: &'static str) {
    let mut pod = one("Always");
    let message = "The node was low on resource: memory. ".to_owned();
    let mut observed = Observed {
        containers: vec![container(&pod, "main", RUNNING)],
        sandbox: Sandbox::Ready {
            addresses: Vec::new(),
        },
        volumes: Volumes::Ready,
        evicted: Some(Eviction {
            reason,
            message: message.clone(),
            by: at(2),
        }),
        ..Observed::default()
    };
    let stop = plan(Some(&pod), Goal::Run, &observed, at(0)).actions;
    let [Action::Stop { how, .. }] = &stop[..] else {
        panic!("{stop:?}");
    };
    assert_eq!(*how, StopHow::Ask { kill_at: at(2) });
    let told = status(
        &pod,
        &observed,
        &Surroundings::default(),
        &PodStatus::default(),
        at(0),
    );
    // It is not over while a container runs, and why it will be is told at once.
    assert_eq!(told.phase.as_deref(), Some("Running"));
    assert_eq!(told.reason.as_deref(), Some(reason));
    assert_eq!(told.message.as_ref(), Some(&message));
    let conditions = told.conditions.clone().unwrap();
    let target = conditions
        .iter()
        .find(|it| it.type_ == "DisruptionTarget")
        .unwrap();
    assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));

    // An agent that begins anew knows it by the status that was told, and has it all removed.
    observed.evicted = None;
    observed.set_state(&container_id("u", "main", 0), exited(137));
    pod.object.status = Some(told);
    assert_eq!(phase(&pod, &observed, at(9)), Phase::Evicted);
    let next = |observed: &Observed| plan(Some(&pod), Goal::Run, observed, at(9)).actions;
    assert_eq!(next(&observed), [Action::RemoveSandbox]);
    observed.sandbox = Sandbox::Gone;
    let id = container_id("u", "main", 0);
    assert_eq!(
        next(&observed),
        [Action::RemoveVolumes, Action::Delete { id }]
    );
    let before = pod.object.status.clone().unwrap();
    observed.volumes = Volumes::Gone;
    observed.containers.clear();
    assert_eq!(next(&observed), []);
    let told = status(&pod, &observed, &Surroundings::default(), &before, at(10));
    assert_eq!(told.message, Some(message));
    assert_eq!(told.phase.as_deref(), Some("Failed"));
}

#[test]
fn containers_that_have_ended_go_when_the_node_is_short_of_room() {
    let pod = one("Always");
    let mut first = container(&pod, "main", exited(1));
    first.id = "first".into();
    let mut second = container(&pod, "main", RUNNING);
    second.attempt = 1;
    let mut observed = Observed {
        containers: vec![first, second],
        sandbox: Sandbox::Ready {
            addresses: Vec::new(),
        },
        volumes: Volumes::Ready,
        contents: Contents::FreshUntil(at(999)),
        ..Observed::default()
    };
    let at_once = |observed: &Observed| plan(Some(&pod), Goal::Run, observed, at(10)).actions;
    assert_eq!(
        at_once(&observed),
        [],
        "the predecessor's log can be asked for"
    );
    observed.discard_until = Some(at(11));
    let gone = Action::Delete { id: "first".into() };
    assert_eq!(at_once(&observed), [gone]);
    observed.discard_until = Some(at(10));
    assert_eq!(at_once(&observed), []);
}
