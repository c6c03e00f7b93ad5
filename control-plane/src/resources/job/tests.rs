use super::*;

fn job(change: impl FnOnce(&mut Value)) -> Job {
    let mut value = json!({
        "metadata": { "name": "pi", "uid": "u1" },
        "spec": { "template": { "spec": {
            "containers": [{ "name": "pi", "image": "perl:5" }], "restartPolicy": "Never",
        } } },
    });
    change(&mut value);
    let mut job: Job = serde_json::from_value(value).unwrap();
    let status = job.status.take();
    job.set_defaults();
    job.prepare_create();
    if status.is_some() {
        job.status = status;
    }
    job
}

fn errors(new: &Job, old: Option<&Job>) -> Vec<String> {
    let errors = Strategy::validate(new, old);
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_job_gets_what_upstream_gives_it() {
    let job = job(|_| {});
    assert_eq!(errors(&job, None), Vec::<String>::new());
    let labels = json!({
        "batch.kubernetes.io/controller-uid": "u1", "batch.kubernetes.io/job-name": "pi",
        "controller-uid": "u1", "job-name": "pi",
    });
    assert_eq!(json!(job.metadata.labels), labels);
    let mut spec = serde_json::to_value(&job.spec).unwrap();
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    spec["template"].take();
    assert_eq!(
        spec,
        json!({
            "backoffLimit": 6, "completionMode": "NonIndexed", "completions": 1, "parallelism": 1,
            "podReplacementPolicy": "TerminatingOrFailed", "suspend": false, "template": null,
            "selector": { "matchLabels": { "batch.kubernetes.io/controller-uid": "u1" } },
        })
    );
}

#[test]
fn a_work_queue_has_no_completions() {
    let queue = job(|job| job["spec"]["parallelism"] = json!(3));
    assert_eq!(queue.spec.as_ref().unwrap().completions, None);
    assert_eq!(completions(&queue), "0/1 of 3");
}

#[test]
fn labels_of_ones_own_must_be_those_that_are_generated() {
    let odd = job(|job| {
        job["spec"]["template"]["metadata"] = json!({ "labels": { "job-name": "other" } });
        job["spec"]["selector"] = json!({ "matchLabels": { "a": "b" } });
    });
    let found = errors(&odd, None);
    assert!(
        found[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value: {"),
        "{found:?}"
    );
    assert!(found[0].ends_with("must be 'pi'"));
    assert!(found[1].ends_with("`selector` not auto-generated"));
    let manual = job(|job| {
        job["spec"]["manualSelector"] = json!(true);
        job["spec"]["selector"] = json!({ "matchLabels": { "a": "b" } });
        job["spec"]["template"]["metadata"] = json!({ "labels": { "a": "b" } });
    });
    assert_eq!(errors(&manual, None), Vec::<String>::new());
}

#[test]
fn pods_of_a_job_end() {
    let endless = job(|job| job["spec"]["template"]["spec"]["restartPolicy"] = Value::Null);
    assert_eq!(
        errors(&endless, None),
        [
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        ]
    );
}

#[test]
fn indexes_need_a_number_of_them() {
    let indexed = |change: fn(&mut Value)| {
        errors(
            &job(|job| {
                job["spec"]["completionMode"] = json!("Indexed");
                change(&mut job["spec"]);
            }),
            None,
        )
    };
    assert_eq!(
        indexed(|spec| spec["parallelism"] = json!(100_001)),
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
    assert_eq!(
        indexed(|spec| {
            spec["completions"] = json!(2);
            spec["maxFailedIndexes"] = json!(3);
            spec["successPolicy"] = json!({ "rules": [{ "succeededIndexes": "0-2" }, { "succeededCount": 2, "succeededIndexes": "1" }] });
        }),
        [
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            "spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions",
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-2\": error parsing succeededIndexes: too large index: \"2\"",
            "spec.successPolicy.rules[1].succeededCount: Invalid value: 2: must be less than or equal to 1 (the number of indexes in the specified succeededIndexes field)",
        ]
    );
    let plain = job(|job| job["spec"]["backoffLimitPerIndex"] = json!(1));
    assert_eq!(
        errors(&plain, None),
        ["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]
    );
    assert_eq!(plain.spec.unwrap().backoff_limit, Some(i32::MAX));
}

#[test]
fn a_failure_policy_makes_sense() {
    let odd = job(|job| {
        job["spec"]["podFailurePolicy"] = json!({ "rules": [
            { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [3, 0, 3], "containerName": "x" } },
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget" }] },
            { "action": "Maybe" },
        ] });
    });
    assert_eq!(
        odd.spec.as_ref().unwrap().pod_replacement_policy.as_deref(),
        Some("Failed")
    );
    let at = "spec.podFailurePolicy.rules";
    assert_eq!(
        errors(&odd, None),
        [
            format!(
                "{at}[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
            ),
            format!(
                "{at}[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template"
            ),
            format!(
                "{at}[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"
            ),
            format!("{at}[0].onExitCodes.values[2]: Duplicate value: 3"),
            format!("{at}[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered"),
            format!(
                "{at}[2].action: Unsupported value: \"Maybe\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""
            ),
            format!(
                "{at}[2]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
            ),
        ]
    );
}

#[test]
fn a_template_stays_unless_the_job_waits() {
    let moved = |job: &mut Value| {
        job["spec"]["template"]["spec"]["nodeSelector"] = json!({ "disk": "big" });
        job["spec"]["template"]["spec"]["affinity"] = json!({ "nodeAffinity": {} });
    };
    let (old, new) = (job(|_| {}), job(moved));
    let found = errors(&new, Some(&old));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("spec.template: Invalid value: {"));
    assert!(found[0].ends_with("field is immutable"));
    let waiting = |job: &mut Value| job["spec"]["suspend"] = json!(true);
    let (old, new) = (job(waiting), job(moved));
    assert_eq!(errors(&new, Some(&old)), Vec::<String>::new());
    let more = job(|job| job["spec"]["completions"] = json!(5));
    assert_eq!(
        errors(&more, Some(&job(|_| {}))),
        ["spec.completions: Invalid value: 5: field is immutable"]
    );
}

#[test]
fn a_managers_name_has_a_domain() {
    let with = |manager: &str| errors(&job(|job| job["spec"]["managedBy"] = json!(manager)), None);
    assert_eq!(with("acme.io/foo"), Vec::<String>::new());
    assert_eq!(
        with("foo"),
        [
            "spec.managedBy: Invalid value: \"foo\": must be a domain-prefixed path (such as \"acme.io/foo\")"
        ]
    );
    assert_eq!(with("a.io/b c").len(), 1);
}

const TIME: &str = "2026-01-01T00:00:00Z";

fn over(type_: &str, before: &str) -> Value {
    json!({
        "startTime": TIME,
        "conditions": [{ "type": before, "status": "True" }, { "type": type_, "status": "True" }],
    })
}

#[test]
fn a_status_adds_up() {
    let with = |status: Value| job(|job| job["status"] = status);
    let mut complete = over("Complete", "SuccessCriteriaMet");
    complete["completionTime"] = json!(TIME);
    let done = with(complete);
    assert_eq!(errors(&done, None), Vec::<String>::new());
    assert_eq!(
        (state(&done), duration(&done, 0)),
        ("Complete", "0s".to_owned())
    );
    assert_eq!(
        errors(&with(json!({ "active": 1 })), Some(&done)),
        [
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
            "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
            "status.startTime: Required value: startTime cannot be removed for unsuspended job",
        ]
    );
    let mut early = over("Failed", "Other");
    early["active"] = json!(1);
    assert_eq!(
        errors(&with(early), None),
        [
            "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
            "status.active: Invalid value: 1: active>0 is invalid for finished job",
        ]
    );
    assert_eq!(
        errors(&with(json!({ "completedIndexes": "0", "ready": 1 })), None),
        [
            "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
            "status.ready: Invalid value: 1: cannot set more ready pods than active",
        ]
    );
}
