//! What a delete does to an object: remove it, mark it, or nothing more than was done before. Pure.
//!
//! ```text
//!   alive --delete--> marked (deletionTimestamp) --grace over, finalizers gone--> removed
//!     `---- no grace, no finalizers ----------------------------------------------^
//! ```

use serde_json::{Value, json};

use super::meta::{self, FOREGROUND, ORPHAN};
use crate::resources::Kind;

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
    pub fn from_body(body: &Value) -> Result<Self, String> {
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
            value => Some(
                value
                    .as_i64()
                    .ok_or_else(|| format!("gracePeriodSeconds: {value} is not a whole number"))?,
            ),
        };
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(DeleteOptions {
            grace,
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: body["dryRun"].as_array().is_some_and(|all| !all.is_empty()),
        })
    }
}

/// Reads a `propagationPolicy`.
pub fn propagation(text: &str) -> Result<Propagation, String> {
    match text {
        "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => Err(format!(
            "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Foreground\", \"Background\", \"Orphan\""
        )),
    }
}

/// Decides. `now` is seconds since the Unix epoch.
pub fn decide(kind: &Kind, object: &Value, options: &DeleteOptions, now: i64) -> Step {
    let mut next = object.clone();
    let finalizers = finalizers_after(object, options.propagation);
    meta::set_finalizers(&mut next, &finalizers);

    let grace = grace_period(kind, object, options.grace);
    let marked_grace = object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(0);
    if meta::is_terminating(object) {
        if grace >= marked_grace && grace > 0 {
            return Step::Nothing;
        }
    } else if kind.generation_counts(object) {
        let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
        meta::of(&mut next).insert("generation".to_owned(), json!(generation + 1));
    }
    if grace == 0 && !is_held(&next) {
        return Step::Remove;
    }
    if !meta::is_terminating(object) || grace < marked_grace {
        let metadata = meta::of(&mut next);
        metadata.insert(
            "deletionTimestamp".to_owned(),
            json!(meta::rfc3339(now.saturating_add(grace))),
        );
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }
    if is_namespace(kind) {
        next["status"]["phase"] = json!("Terminating");
    }
    if next == *object {
        Step::Nothing
    } else {
        Step::Mark(next)
    }
}

/// Whether an update of a marked object was the last thing its removal waited for.
pub fn is_finished(object: &Value) -> bool {
    meta::is_terminating(object)
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && !is_held(object)
}

/// Whether somebody must still do something before the object may go. A Namespace has finalizers in its spec too.
fn is_held(object: &Value) -> bool {
    let of_namespace = object["kind"] == "Namespace"
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
    of_namespace || !meta::finalizers(object).is_empty()
}

fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "namespaces"
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

/// Only a pod that a node runs needs time to stop.
fn grace_period(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    let is_pod = kind.group.is_empty() && kind.plural == "pods";
    let bound = object["spec"]["nodeName"]
        .as_str()
        .is_some_and(|n| !n.is_empty());
    let over = matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if !is_pod || !bound || over {
        return 0;
    }
    let grace = asked.unwrap_or_else(|| {
        object["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(30)
    });
    if grace < 0 { 1 } else { grace }
}

impl Kind {
    /// Whether a mark for deletion counts as a new generation: where generations are counted at all.
    fn generation_counts(&self, object: &Value) -> bool {
        object["metadata"]["generation"]
            .as_i64()
            .is_some_and(|g| g > 0)
    }
}
