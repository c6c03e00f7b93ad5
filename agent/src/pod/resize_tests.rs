use serde_json::{Value, json};

use super::super::action::StopHow;
use super::super::spec::{Goal, container_id, spec_hash};
use super::super::{plan, status};
use super::*;
use crate::runtime::{ContainerState, Exit, ExitCause};

fn pod(resources: &Value, policy: &str) -> PodView {
    let policies =
        ["cpu", "memory"].map(|name| json!({"resourceName": name, "restartPolicy": policy}));
    let object = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": resources, "resizePolicy": policies}]},
    });
    PodView::new(serde_json::from_value(object).unwrap()).unwrap()
}

/// A node of four cores and 8 GiB, of which others have three and two, that runs the pod as it was.
fn observed(was: &PodView) -> Observed {
    let spec = &was.containers()[0];
    let container = Container {
        id: container_id("u", "c", 0),
        pod: was.id.clone(),
        name: "c".into(),
        attempt: 0,
        streak: 0,
        spec_hash: spec_hash(spec),
        image: "i".into(),
        image_id: String::new(),
        given: note(spec),
        stop_signal: 15,
        user: None,
        created_at: Timestamp::UNIX_EPOCH,
        earlier_boot: false,
        hook_due: false,
        state: ContainerState::Running { pid: 1 },
    };
    let other = json!({"requests": {"cpu": "3", "memory": "2Gi"}});
    let amounts: Amounts = serde_json::from_value(json!({"cpu": "4", "memory": "8Gi"})).unwrap();
    Observed {
        sandbox: super::super::observed::Sandbox::Ready {
            addresses: Vec::new(),
        },
        containers: vec![container],
        room: Some(Room::of(
            &amounts,
            [&pod(&other, "NotRequired")].into_iter(),
            &Grants::new(),
        )),
        ..Observed::default()
    }
}

fn asks(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}})
}

fn actions(pod: &PodView, observed: &Observed) -> Vec<Action> {
    plan::plan(Some(pod), Goal::Run, observed, Timestamp::UNIX_EPOCH).actions
}

fn conditions(pod: &PodView, observed: &Observed) -> Vec<String> {
    let surroundings = status::Surroundings::default();
    let previous = PodStatus::default();
    let now = Timestamp::UNIX_EPOCH;
    let told = status::status(pod, observed, &surroundings, &previous, now);
    let all = told.conditions.into_iter().flatten();
    all.filter(|it| it.type_.starts_with("PodResize"))
        .map(|it| {
            format!(
                "{} {} {}",
                it.type_,
                it.reason.unwrap_or_default(),
                it.message.unwrap_or_default()
            )
        })
        .collect()
}

#[test]
fn what_fits_is_given_to_the_running_container() {
    let was = pod(&asks("500m", "1Gi"), "NotRequired");
    let mut seen = observed(&was);
    assert_eq!(actions(&was, &seen), []);
    // The same, said in another way.
    assert_eq!(
        answer(&pod(&asks("0.5", "1024Mi"), "NotRequired"), &seen),
        None
    );
    let now = pod(&asks("1", "512Mi"), "NotRequired");
    assert_eq!(answer(&now, &seen), Some(Answer::Granted));
    assert_eq!(actions(&now, &seen), [Action::Resize]);
    assert_eq!(conditions(&now, &seen), ["PodResizeInProgress  "]);
    seen.containers[0].given = note(&now.containers()[0]);
    assert_eq!(actions(&now, &seen), []);
    assert_eq!(conditions(&now, &seen), [""; 0]);
}

#[test]
fn what_does_not_fit_waits_or_is_told_never_to() {
    let was = pod(&asks("500m", "1Gi"), "NotRequired");
    let seen = observed(&was);
    let later = pod(&asks("2", "1Gi"), "NotRequired");
    assert_eq!(actions(&later, &seen), []);
    assert_eq!(
        conditions(&later, &seen),
        [
            "PodResizePending Deferred Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
        ]
    );
    let wake = plan::plan(Some(&later), Goal::Run, &seen, Timestamp::UNIX_EPOCH).wake;
    assert_eq!(wake, Some(add(Timestamp::UNIX_EPOCH, WAIT)));
    let kept = granted(&later, &seen);
    assert_eq!(kept.requests("cpu"), 0.5, "a restart changes nothing of it");
    let never = pod(&asks("2", "9Gi"), "NotRequired");
    assert_eq!(
        conditions(&never, &seen),
        [
            "PodResizePending Infeasible Node didn't have enough capacity: memory, requested: 9663676416, capacity: 8589934592"
        ]
    );
    // It takes less than it has of what is short.
    let mut crowded = seen.clone();
    crowded.room.as_mut().unwrap().used.insert("cpu", 4.0);
    assert_eq!(
        answer(&pod(&asks("100m", "1Gi"), "NotRequired"), &crowded),
        Some(Answer::Granted)
    );
}

#[test]
fn a_container_that_has_to_start_anew_for_it_is_stopped() {
    let was = pod(&asks("500m", "1Gi"), "RestartContainer");
    let mut seen = observed(&was);
    let now = pod(&asks("1", "1Gi"), "RestartContainer");
    let found = actions(&now, &seen);
    assert!(
        matches!(
            &found[..],
            [Action::Stop {
                how: StopHow::Ask { .. },
                why: StopReason::Resized,
                ..
            }]
        ),
        "{found:?}"
    );
    // It runs again, even if it ends well and its pod would not have it run again.
    let mut ended = seen.clone();
    ended.containers[0].given = stopped(&seen.containers[0]);
    ended.containers[0].state = ContainerState::Exited(Exit {
        code: 0,
        at: Timestamp::UNIX_EPOCH,
        cause: ExitCause::Process,
        message: String::new(),
    });
    let mut lasting = now.clone();
    lasting.object.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into());
    assert_eq!(
        plan::phase(&lasting, &ended, Timestamp::UNIX_EPOCH),
        plan::Phase::Active
    );
    ended.containers[0].given = note(&was.containers()[0]);
    assert_eq!(
        plan::phase(&lasting, &ended, Timestamp::UNIX_EPOCH),
        plan::Phase::Succeeded
    );
    // One of an earlier agent is not restarted for want of a note.
    seen.containers[0].given = String::new();
    assert_eq!(actions(&now, &seen), [Action::Resize]);
}

#[test]
fn what_others_were_told_to_have_counts_and_not_what_they_wait_for() {
    let waits = pod(&asks("2", "1Gi"), "NotRequired");
    let told = json!({"containerStatuses": [{
        "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
        "resources": {"requests": {"cpu": "1"}},
    }]});
    let as_told = as_told(&waits, &serde_json::from_value(told).unwrap());
    assert_eq!(as_told.requests("cpu"), 1.0);
}

#[test]
fn what_was_just_granted_to_another_is_taken() {
    let other = pod(&asks("1", "1Gi"), "NotRequired");
    let amounts: Amounts = serde_json::from_value(json!({"cpu": "4"})).unwrap();
    let used = |grants: &Grants| Room::of(&amounts, [&other].into_iter(), grants).used["cpu"];
    assert_eq!(used(&Grants::new()), 1.0);
    let more = asked(&pod(&asks("2", "1Gi"), "NotRequired"));
    assert_eq!(used(&Grants::from([("u".to_owned(), more)])), 2.0);
}
