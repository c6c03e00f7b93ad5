//! What a delete does to an object: remove it, mark it, or nothing more than was done before. Pure.
//!
//! ```text
//!   alive --delete--> marked (deletionTimestamp) --grace over, finalizers gone--> removed
//!     `---- no grace, no finalizers ----------------------------------------------^
//! ```

use serde_json::{Value, json};

use super::error::ApiError;
use super::meta::{self, FOREGROUND, ORPHAN};
use crate::resources::validate::{FieldError, Path};
use crate::resources::{Kind, Subresource};

/// What becomes of the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// `DeleteOptions`, from body and query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds; None leaves it to the kind.
    pub grace: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

/// What has to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Remove,
    /// Write this and wait for whoever holds the object.
    Mark(Value),
    /// It is already marked, and this request hurries nobody.
    Nothing,
}

impl DeleteOptions {
    /// Takes what `body` (a `DeleteOptions` object, or null) says. The error is for the client.
    pub fn from_body(body: &Value) -> Result<Self, ApiError> {
        if body["propagationPolicy"].is_string() && body["orphanDependents"].is_boolean() {
            let policy = body["propagationPolicy"].clone();
            let both = "orphanDependents and deletionPropagation cannot be both set";
            return Err(wrong(Path::new("propagationPolicy").invalid(policy, both)));
        }
        let propagation = match body["propagationPolicy"].as_str() {
            None => match body["orphanDependents"].as_bool() {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some(text) => Some(propagation(text)?),
        };
        let grace = match &body["gracePeriodSeconds"] {
            Value::Null => None,
            value => Some(value.as_i64().ok_or_else(|| {
                let path = Path::new("gracePeriodSeconds");
                wrong(path.invalid(value.clone(), "must be a whole number"))
            })?),
        };
        let dry_run = body["dryRun"].as_array().map_or(&[][..], Vec::as_slice);
        if let Some(other) = dry_run.iter().find(|one| *one != "All") {
            let other = other.as_str().unwrap_or_default();
            return Err(wrong(Path::new("dryRun").unsupported(other, &["All"])));
        }
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(DeleteOptions {
            grace,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: !dry_run.is_empty(),
        })
    }
}

fn wrong(error: FieldError) -> ApiError {
    ApiError::invalid_options("DeleteOptions", error)
}

/// Reads a `propagationPolicy`.
pub fn propagation(text: &str) -> Result<Propagation, ApiError> {
    match text {
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let path = Path::new("propagationPolicy");
            let policies = ["Background", "Foreground", "Orphan"];
            Err(wrong(path.unsupported(other, &policies)))
        }
    }
}

/// Decides. `now` is seconds since the Unix epoch.
pub fn decide(kind: &Kind, object: &Value, options: &DeleteOptions, now: i64) -> Step {
    let mut next = object.clone();
    let decided = |finalizer: &String| finalizer == FOREGROUND || finalizer == ORPHAN;
    let open = !meta::is_terminating(object) && !meta::finalizers(object).iter().any(decided);
    let default = (kind.orphans && open).then_some(Propagation::Orphan);
    let finalizers = finalizers_after(object, options.propagation.or(default));
    meta::set_finalizers(&mut next, &finalizers);

    let marked_grace = object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(0);
    let (grace, asked_at) = if !meta::is_terminating(object) {
        if generation_counts(object) {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
            meta::of(&mut next).insert("generation".to_owned(), json!(generation + 1));
        }
        ((kind.grace_period)(object, options.grace), now)
    } else if marked_grace > 0 {
        // Who asks again may only hurry, and only by saying so; the time runs since the first one asked.
        match options.grace.map(|grace| if grace < 0 { 1 } else { grace }) {
            Some(grace) if grace < marked_grace => {
                (grace, over_at(object, now).saturating_sub(marked_grace))
            }
            _ => return Step::Nothing,
        }
    } else {
        (0, now)
    };
    if grace == 0 && !is_held(kind, &next) {
        return Step::Remove;
    }
    if !meta::is_terminating(object) || grace < marked_grace {
        let metadata = meta::of(&mut next);
        metadata.insert(
            "deletionTimestamp".to_owned(),
            json!(meta::rfc3339(asked_at.saturating_add(grace))),
        );
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }
    // Whoever finalizes it looks for this.
    if kind.has(Subresource::Finalize) {
        next["status"]["phase"] = json!("Terminating");
    }
    if next == *object {
        Step::Nothing
    } else {
        Step::Mark(next)
    }
}

/// Whether an update of a marked object was the last thing its removal waited for.
pub fn is_finished(kind: &Kind, object: &Value) -> bool {
    meta::is_terminating(object)
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && !is_held(kind, object)
}

/// Whether somebody must still do something before the object may go. What is finalized through a subresource has
/// finalizers in its spec too.
fn is_held(kind: &Kind, object: &Value) -> bool {
    let in_spec = kind.has(Subresource::Finalize)
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
    in_spec || !meta::finalizers(object).is_empty()
}

/// When a marked object's time is over, in seconds since the Unix epoch.
fn over_at(object: &Value, now: i64) -> i64 {
    let text = meta::text(object, "deletionTimestamp");
    text.parse::<jiff::Timestamp>()
        .map_or(now, jiff::Timestamp::as_second)
}

fn finalizers_after(object: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let mut finalizers = meta::finalizers(object);
    let wanted = match propagation {
        None => return finalizers,
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
    };
    finalizers.retain(|f| (f != FOREGROUND && f != ORPHAN) || Some(f.as_str()) == wanted);
    if let Some(wanted) = wanted
        && !finalizers.iter().any(|f| f == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    finalizers
}

/// Whether a mark for deletion counts as a new generation: where generations are counted at all.
fn generation_counts(object: &Value) -> bool {
    object["metadata"]["generation"]
        .as_i64()
        .is_some_and(|g| g > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;
    use crate::resources::pod::validate::MAX_GRACE;

    fn kind(plural: &str) -> &'static Kind {
        resources::find("", "v1", plural).expect("a kind")
    }

    fn marked(step: Step) -> Value {
        match step {
            Step::Mark(object) => object,
            other => panic!("{other:?}"),
        }
    }

    fn pod(node: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 20}})
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions {
            grace: Some(seconds),
            ..DeleteOptions::default()
        }
    }

    #[test]
    fn what_some_kinds_own_stays_unless_somebody_says_otherwise() {
        let kind = resources::find("batch", "v1", "jobs").expect("a kind");
        let job = json!({"kind": "Job", "metadata": {"name": "j"}});
        let finalizers = |options: &DeleteOptions| match decide(kind, &job, options, 1000) {
            Step::Mark(object) => meta::finalizers(&object),
            _ => Vec::new(),
        };
        assert_eq!(finalizers(&DeleteOptions::default()), [ORPHAN]);
        let background = DeleteOptions {
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        assert_eq!(finalizers(&background), [""; 0]);
    }

    #[test]
    fn a_pod_on_a_node_gets_its_grace() {
        let options = DeleteOptions::default();
        let next = marked(decide(kind("pods"), &pod("n"), &options, 1000));
        assert_eq!(next["metadata"]["deletionTimestamp"], meta::rfc3339(1020));
        assert_eq!(next["metadata"]["deletionGracePeriodSeconds"], 20);
        assert_eq!(next["metadata"]["generation"], 2);
        // Again: nothing new. Shorter: hurried. None at all: gone.
        assert_eq!(decide(kind("pods"), &next, &options, 1001), Step::Nothing);
        let hurried = marked(decide(kind("pods"), &next, &grace(5), 1001));
        assert_eq!(
            hurried["metadata"]["deletionTimestamp"],
            meta::rfc3339(1005),
            "since it was asked for first"
        );
        assert_eq!(hurried["metadata"]["generation"], 2);
        assert_eq!(decide(kind("pods"), &next, &grace(0), 1001), Step::Remove);
    }

    #[test]
    fn an_endless_grace_ends_at_a_time_that_can_be_written() {
        let mut patient = pod("n");
        patient["spec"]["terminationGracePeriodSeconds"] = json!(1_000_000_000_000_i64);
        for options in [
            DeleteOptions::default(),
            grace(300_000_000_000),
            grace(i64::MAX),
        ] {
            let next = marked(decide(kind("pods"), &patient, &options, 1000));
            let text = next["metadata"]["deletionTimestamp"].as_str();
            assert_eq!(text, Some(meta::rfc3339(1000 + MAX_GRACE).as_str()));
            assert_eq!(next["metadata"]["deletionGracePeriodSeconds"], MAX_GRACE);
            assert!((kind("pods").decode)(next).is_ok());
        }
    }

    #[test]
    fn what_nobody_runs_goes_at_once() {
        let options = DeleteOptions::default();
        assert_eq!(decide(kind("pods"), &pod(""), &options, 0), Step::Remove);
        let mut over = pod("n");
        over["status"] = json!({"phase": "Succeeded"});
        assert_eq!(decide(kind("pods"), &over, &options, 0), Step::Remove);
        assert_eq!(
            decide(kind("configmaps"), &json!({"metadata": {}}), &grace(30), 0),
            Step::Remove
        );
    }

    #[test]
    fn a_second_delete_changes_only_what_it_names() {
        let options = DeleteOptions::default();
        let mut slow = marked(decide(kind("pods"), &pod("n"), &grace(600), 1000));
        assert_eq!(decide(kind("pods"), &slow, &options, 1001), Step::Nothing);
        slow["status"] = json!({"phase": "Failed"});
        assert_eq!(decide(kind("pods"), &slow, &options, 1001), Step::Nothing);
        let hurried = marked(decide(kind("pods"), &slow, &grace(5), 1001));
        assert_eq!(hurried["metadata"]["deletionGracePeriodSeconds"], 5);
    }

    #[test]
    fn finalizers_hold_an_object() {
        let held = json!({"metadata": {"finalizers": ["a/b"]}});
        let next = marked(decide(
            kind("configmaps"),
            &held,
            &DeleteOptions::default(),
            7,
        ));
        assert_eq!(next["metadata"]["deletionTimestamp"], meta::rfc3339(7));
        assert!(!is_finished(kind("configmaps"), &next));
        assert_eq!(
            decide(kind("configmaps"), &next, &DeleteOptions::default(), 8),
            Step::Nothing
        );
        let mut freed = next;
        meta::set_finalizers(&mut freed, &[]);
        assert!(is_finished(kind("configmaps"), &freed));
    }

    #[test]
    fn propagation_is_a_finalizer() {
        let object = json!({"metadata": {}});
        for (policy, finalizer) in [("Foreground", FOREGROUND), ("Orphan", ORPHAN)] {
            let options =
                DeleteOptions::from_body(&json!({"propagationPolicy": policy})).expect("options");
            let next = marked(decide(kind("configmaps"), &object, &options, 0));
            assert_eq!(next["metadata"]["finalizers"], json!([finalizer]));
        }
        let background =
            DeleteOptions::from_body(&json!({"propagationPolicy": "Background"})).expect("options");
        let orphaning = json!({"metadata": {"finalizers": [ORPHAN]}});
        assert_eq!(
            decide(kind("configmaps"), &orphaning, &background, 0),
            Step::Remove
        );
        let refused = DeleteOptions::from_body(&json!({"propagationPolicy": "Sideways"}));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"Sideways\": supported values: \"Background\", \"Foreground\", \"Orphan\""
        );
        let both = json!({"propagationPolicy": "Orphan", "orphanDependents": false});
        assert!(DeleteOptions::from_body(&both).is_err());
        assert!(DeleteOptions::from_body(&json!({"dryRun": ["Some"]})).is_err());
    }

    #[test]
    fn a_namespace_waits_for_its_content() {
        let namespace = json!({"kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let next = marked(decide(
            kind("namespaces"),
            &namespace,
            &DeleteOptions::default(),
            0,
        ));
        assert_eq!(next["status"]["phase"], "Terminating");
        assert!(!is_finished(kind("namespaces"), &next));
    }
}
