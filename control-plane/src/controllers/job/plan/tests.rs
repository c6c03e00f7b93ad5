//! What is done for a Job, given its pods.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::controllers::job::pods::TRACKED;
use crate::controllers::testing::{PodBuilder, at, pod};
use crate::resources::Strategy as _;

fn job(change: impl FnOnce(&mut Value)) -> Job {
    let mut value = json!({
        "metadata": {"name": "pi", "namespace": "default", "uid": "job"},
        "spec": {
            "completions": 3, "parallelism": 2,
            "template": {"spec": {"containers": [{"name": "c", "image": "i:1"}], "restartPolicy": "Never"}},
        },
    });
    change(&mut value);
    let mut job: Job = serde_json::from_value(value).unwrap();
    job.set_defaults();
    job.prepare_create();
    job
}

fn indexed(job: &mut Value) {
    job["spec"]["completionMode"] = json!("Indexed");
}

fn ours(name: &str) -> PodBuilder {
    pod(name)
        .label("batch.kubernetes.io/controller-uid", "job")
        .owner("Job", "pi", "job")
        .with(|pod| pod.metadata.finalizers = Some(vec![TRACKED.into()]))
}

fn of(name: &str, index: i32) -> PodBuilder {
    ours(name).with(|pod| {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(
            "batch.kubernetes.io/job-completion-index".into(),
            index.to_string(),
        );
    })
}

fn ended(pod: PodBuilder, phase: &str, second: i64, code: i32) -> PodBuilder {
    pod.phase(phase).with(|pod| {
        let status = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": at(second).to_string()}}}]);
        pod.status.as_mut().unwrap().container_statuses = serde_json::from_value(status).unwrap();
    })
}

fn planned(job: &Job, pods: Vec<PodBuilder>) -> Plan {
    let pods: Vec<Arc<Pod>> = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
    plan(job, &pods, true, at(1000))
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect()
}

fn is(plan: &Plan, type_: &str) -> bool {
    condition(&plan.status, type_)
}

fn reason(plan: &Plan, type_: &str) -> String {
    let found = known(&plan.status, type_).and_then(|known| known.reason.clone());
    found.unwrap_or_default()
}

#[test]
fn as_many_pods_run_as_may_and_are_missing() {
    let first = planned(&job(|_| {}), vec![]);
    assert_eq!(first.create.len(), 2);
    assert_eq!(first.status.start_time, Some(Time(at(1000))));
    let made = &first.create[0];
    assert_eq!(made.metadata.generate_name.as_deref(), Some("pi-"));
    assert!(is_tracked(made));
    let last = planned(
        &job(|_| {}),
        vec![
            ended(ours("a"), "Succeeded", 1, 0),
            ended(ours("b"), "Succeeded", 1, 0),
        ],
    );
    assert_eq!(last.create.len(), 1);
    assert_eq!(names(&last.release), ["a", "b"]);
    let noted = last.status.uncounted_terminated_pods.unwrap();
    assert_eq!(noted.succeeded, Some(vec!["uid-a".into(), "uid-b".into()]));
    assert_eq!(
        last.status.succeeded, None,
        "counted when the pods are let go"
    );
}

#[test]
fn an_end_is_counted_when_its_pod_was_let_go() {
    let mut job = job(|job| job["spec"]["completions"] = json!(1));
    job.status =
        serde_json::from_value(json!({"uncountedTerminatedPods": {"succeeded": ["uid-a"]}}))
            .unwrap();
    let held = planned(&job, vec![ended(ours("a"), "Succeeded", 1, 0)]);
    assert!(is(&held, SUCCEEDING) && !is(&held, COMPLETE));
    assert_eq!(held.status.succeeded, None);
    let free = |pod: &mut Pod| pod.metadata.finalizers = None;
    let done = planned(&job, vec![ended(ours("a"), "Succeeded", 1, 0).with(free)]);
    assert_eq!(done.status.succeeded, Some(1));
    assert!(is(&done, COMPLETE));
    assert_eq!(done.status.completion_time, Some(Time(at(1000))));
    assert_eq!(reason(&done, COMPLETE), "CompletionsReached");
    assert_eq!(
        crate::resources::Strategy::validate(
            &Job {
                status: Some(done.status),
                ..job.clone()
            },
            Some(&job)
        ),
        vec![]
    );
}

#[test]
fn failures_are_tried_again_after_a_while_and_not_for_ever() {
    let failing = job(|job| job["spec"]["backoffLimit"] = json!(1));
    let once = planned(&failing, vec![ended(ours("a"), "Failed", 995, 1)]);
    assert!(once.create.is_empty());
    assert_eq!(once.look_again, Some(Duration::from_secs(5)));
    let later = planned(&failing, vec![ended(ours("a"), "Failed", 900, 1)]);
    assert_eq!(later.create.len(), 2);
    let twice = planned(
        &failing,
        vec![
            ended(ours("a"), "Failed", 1, 1),
            ended(ours("b"), "Failed", 1, 1),
            ours("c").ready_at(0),
        ],
    );
    assert_eq!(reason(&twice, FAILING), "BackoffLimitExceeded");
    assert!(twice.create.is_empty() && !is(&twice, FAILED));
    assert_eq!(names(&twice.stop), ["c"]);
    assert_eq!(names(&twice.release), ["a", "b", "c"]);
    let mut over = failing;
    over.status = Some(twice.status);
    over.status.as_mut().unwrap().uncounted_terminated_pods = None;
    over.status.as_mut().unwrap().failed = Some(3);
    let over = planned(&over, vec![]);
    assert!(is(&over, FAILED));
    assert_eq!(
        over.events[0].2,
        "Job has reached the specified backoff limit"
    );
}

#[test]
fn a_deadline_ends_what_runs() {
    let mut job = job(|job| job["spec"]["activeDeadlineSeconds"] = json!(100));
    job.status.as_mut().unwrap().start_time = Some(Time(at(950)));
    let early = planned(&job, vec![ours("a").ready_at(0), ours("b").ready_at(0)]);
    assert_eq!(early.look_again, Some(Duration::from_secs(50)));
    job.status.as_mut().unwrap().start_time = Some(Time(at(900)));
    let late = planned(&job, vec![ours("a").ready_at(0)]);
    assert_eq!(reason(&late, FAILING), "DeadlineExceeded");
    assert_eq!(names(&late.stop), ["a"]);
}

#[test]
fn a_job_that_waits_has_no_pods_and_counts_none_of_them() {
    let waiting = job(|job| job["spec"]["suspend"] = json!(true));
    let plan = planned(&waiting, vec![ours("a").ready_at(0)]);
    assert_eq!(names(&plan.dismiss), ["a"]);
    assert!(is(&plan, SUSPENDED) && plan.create.is_empty());
    assert_eq!(plan.status.start_time, None);
    let mut resumed = job(|_| {});
    resumed.status = Some(plan.status);
    let plan = planned(&resumed, vec![]);
    assert!(!is(&plan, SUSPENDED));
    assert_eq!((plan.create.len(), plan.events[0].1), (2, "Resumed"));
    assert_eq!(plan.status.start_time, Some(Time(at(1000))));
}

#[test]
fn each_index_succeeds_once() {
    let job = job(indexed);
    let plan = planned(
        &job,
        vec![
            ended(of("a", 0), "Succeeded", 1, 0),
            of("b", 1).ready_at(0),
            of("twin", 1),
            of("far", 7),
        ],
    );
    assert_eq!(plan.status.completed_indexes.as_deref(), Some("0"));
    assert_eq!(names(&plan.dismiss), ["far", "twin"]);
    let plan = planned(&job, vec![ended(of("a", 0), "Succeeded", 1, 0), of("b", 1)]);
    assert_eq!(plan.create.len(), 1);
    let made = serde_json::to_value(&plan.create[0]).unwrap();
    assert_eq!(made["metadata"]["generateName"], "pi-2-");
    assert_eq!(made["spec"]["hostname"], "pi-2");
    assert_eq!(
        made["spec"]["containers"][0]["env"][0]["name"],
        "JOB_COMPLETION_INDEX"
    );
}

#[test]
fn an_index_that_fails_is_lost_alone() {
    let job = job(|job| {
        indexed(job);
        job["spec"]["backoffLimitPerIndex"] = json!(1);
    });
    let first = ended(of("a", 0), "Failed", 1, 1);
    let plan = planned(&job, vec![first, of("b", 1)]);
    let again = &plan.create[0].metadata;
    assert_eq!(
        again.annotations.as_ref().unwrap()["batch.kubernetes.io/job-index-failure-count"],
        "1"
    );
    assert!(
        plan.release.is_empty(),
        "it says how often its index failed"
    );
    let second = |pod: &mut Pod| {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(
            "batch.kubernetes.io/job-index-failure-count".into(),
            "1".into(),
        );
    };
    let plan = planned(
        &job,
        vec![
            ended(of("a", 0), "Failed", 1, 1),
            ended(of("a2", 0), "Failed", 1, 1).with(second),
            of("b", 1),
        ],
    );
    assert_eq!(plan.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(names(&plan.release), ["a", "a2"]);
    assert_eq!(
        plan.create[0].metadata.generate_name.as_deref(),
        Some("pi-2-")
    );
}

#[test]
fn a_failure_policy_says_what_a_failure_means() {
    let job = job(|job| {
        job["spec"]["podFailurePolicy"] = json!({"rules": [
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]});
    });
    let fatal = planned(&job, vec![ended(ours("a"), "Failed", 1, 42)]);
    assert_eq!(reason(&fatal, FAILING), "PodFailurePolicy");
    let message = known(&fatal.status, FAILING).unwrap().message.clone();
    assert_eq!(
        message.as_deref(),
        Some(
            "Container c for pod default/a failed with exit code 42 matching FailJob rule at index 0"
        )
    );
    let evicted = |pod: &mut Pod| {
        let conditions = json!([{"type": "DisruptionTarget", "status": "True"}]);
        pod.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
    };
    let ignored = planned(&job, vec![ended(ours("a"), "Failed", 999, 1).with(evicted)]);
    assert_eq!(ignored.create.len(), 2, "without any pause");
    assert_eq!(names(&ignored.release), ["a"]);
    assert!(!has_uncounted(&ignored.status));
}

#[test]
fn some_indexes_can_be_enough() {
    let job = job(|job| {
        indexed(job);
        job["spec"]["successPolicy"] = json!({"rules": [{"succeededIndexes": "1"}]});
    });
    let plan = planned(&job, vec![ended(of("b", 1), "Succeeded", 1, 0), of("a", 0)]);
    assert_eq!(reason(&plan, SUCCEEDING), "SuccessPolicy");
    assert_eq!(names(&plan.stop), ["a"]);
}

#[test]
fn a_job_that_is_over_goes_in_time() {
    let mut job = job(|job| job["spec"]["ttlSecondsAfterFinished"] = json!(60));
    job.status = serde_json::from_value(json!({"conditions": [
        {"type": "Complete", "status": "True", "lastTransitionTime": at(950).to_string()},
    ]}))
    .unwrap();
    let early = planned(&job, vec![ours("late")]);
    assert_eq!(
        (early.expired, early.look_again),
        (false, Some(Duration::from_secs(10)))
    );
    assert_eq!(names(&early.release), ["late"]);
    let late = plan(&job, &[], true, at(1010));
    assert!(late.expired);
}

/// A pod as it may be found.
fn any_pod(number: usize) -> impl Strategy<Value = PodBuilder> {
    let phases = prop_oneof![
        Just("Pending"),
        Just("Running"),
        Just("Succeeded"),
        Just("Failed")
    ];
    (phases, any::<bool>(), 0_i32..5).prop_map(move |(phase, terminating, index)| {
        let pod = ended(of(&format!("p{number}"), index), phase, 900, 1);
        if terminating { pod.terminating() } else { pod }
    })
}

fn any_pods() -> impl Strategy<Value = Vec<PodBuilder>> {
    (0_usize..6).prop_flat_map(|count| (0..count).map(any_pod).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn whatever_there_is_the_status_is_valid_and_no_more_runs_than_may(pods in any_pods(), is_indexed: bool, settled: bool) {
        let job = job(|job| if is_indexed { indexed(job) });
        let pods: Vec<Arc<Pod>> = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
        let plan = plan(&job, &pods, settled, at(1000));
        let next = Job { status: Some(plan.status.clone()), ..job.clone() };
        prop_assert_eq!(crate::resources::Strategy::validate(&next, Some(&job)), vec![]);
        let active = pods.iter().filter(|pod| is_active(pod)).count();
        prop_assert!(active + plan.create.len() - plan.dismiss.len() <= 2.max(active));
        prop_assert!(plan.create.is_empty() || plan.dismiss.is_empty());
        if !settled {
            prop_assert!(plan.create.is_empty() && plan.dismiss.is_empty() && plan.stop.is_empty());
        }
    }
}
