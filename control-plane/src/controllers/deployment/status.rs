//! What a Deployment says about itself: counts, and the conditions Available, Progressing and ReplicaFailure. No I/O.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::sets::{Set, Sets, max_unavailable, replicas};

/// With this deadline upstream takes progress to be without one.
const NO_DEADLINE: i32 = i32::MAX;

/// What this pass did that the conditions tell about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum News {
    #[default]
    None,
    Created(String),
    Paused,
    Resumed,
}

pub(super) fn status_of(
    deployment: &Deployment,
    sets: &Sets,
    news: &News,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |count: fn(&Set) -> i32| sets.all().map(count).sum::<i32>();
    let available = sum(Set::available);
    let total = sum(Set::replicas);
    let some = |count: i32| (count > 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|set| set.observed().replicas)),
        updated_replicas: some(sets.new.as_ref().map_or(0, |new| new.observed().replicas)),
        ready_replicas: some(sum(|set| set.observed().ready_replicas.unwrap_or_default())),
        available_replicas: some(available),
        unavailable_replicas: some(total - available),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
        terminating_replicas: None,
    };
    let conditions = status.conditions.get_or_insert_default();
    let is_available = available >= replicas(deployment) - max_unavailable(deployment);
    let verdict = if is_available {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".to_owned(),
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        )
    };
    set_condition(conditions, "Available", verdict, now);
    let mut conditions = std::mem::take(conditions);
    let look_again = judge_progress(deployment, sets, news, &status, &old, &mut conditions, now);
    copy_failure(sets, &mut conditions, now);
    status.conditions = Some(conditions);
    (status, look_again)
}

/// The status of a Deployment whose new ReplicaSet the server refuses: all else is as it was.
pub(super) fn refused(
    deployment: &Deployment,
    message: String,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = deployment.status.clone().unwrap_or_default();
    let deadline = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds);
    if deadline != Some(NO_DEADLINE) {
        let verdict = ("False", "ReplicaSetCreateError", message);
        let conditions = status.conditions.get_or_insert_default();
        set_condition(conditions, "Progressing", verdict, now);
    }
    status
}

fn judge_progress(
    deployment: &Deployment,
    sets: &Sets,
    news: &News,
    status: &DeploymentStatus,
    old: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds)
        .unwrap_or(600);
    if deadline == NO_DEADLINE {
        conditions.retain(|condition| condition.type_ != "Progressing");
        return None;
    }
    let known = conditions
        .iter()
        .find(|condition| condition.type_ == "Progressing")
        .cloned();
    let reason = known
        .as_ref()
        .and_then(|known| known.reason.as_deref())
        .unwrap_or_default()
        .to_owned();
    let is_paused = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.paused)
        .unwrap_or(false);
    let set_name = sets
        .new
        .as_ref()
        .map(Set::name)
        .unwrap_or_default()
        .to_owned();
    let of_set = |what: &str| format!("ReplicaSet \"{set_name}\" {what}");
    match news {
        News::Paused => {
            let verdict = (
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused".to_owned(),
            );
            set_condition(conditions, "Progressing", verdict, now);
        }
        News::Resumed => {
            let verdict = (
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed".to_owned(),
            );
            set_condition(conditions, "Progressing", verdict, now);
        }
        News::Created(name) => {
            let verdict = (
                "True",
                "NewReplicaSetCreated",
                format!("Created new replica set \"{name}\""),
            );
            set_condition(conditions, "Progressing", verdict, now);
        }
        News::None if is_paused => return None,
        News::None if is_complete(deployment, status) => {
            let verdict = (
                "True",
                "NewReplicaSetAvailable",
                of_set("has successfully progressed."),
            );
            set_condition(conditions, "Progressing", verdict, now);
            return None;
        }
        // A rollout that once ended is not judged again until a new one starts.
        News::None
            if reason == "NewReplicaSetAvailable" && status.replicas == status.updated_replicas =>
        {
            return None;
        }
        News::None if has_progressed(status, old) => {
            let verdict = ("True", "ReplicaSetUpdated", of_set("is progressing."));
            set_condition(conditions, "Progressing", verdict, now);
            // Progress moves the deadline although neither status nor reason changed.
            for condition in conditions
                .iter_mut()
                .filter(|condition| condition.type_ == "Progressing")
            {
                condition.last_update_time = Some(Time(now));
            }
        }
        News::None if known.is_none() => {
            let verdict = (
                "True",
                "FoundNewReplicaSet",
                format!("Found new replica set \"{set_name}\""),
            );
            set_condition(conditions, "Progressing", verdict, now);
        }
        News::None => {
            let left = known.and_then(|known| time_left(&known, deadline, now))?;
            if !left.is_zero() {
                return Some(left);
            }
            let verdict = (
                "False",
                "ProgressDeadlineExceeded",
                of_set("has timed out progressing."),
            );
            set_condition(conditions, "Progressing", verdict, now);
            return None;
        }
    }
    let seconds = u64::try_from(deadline).unwrap_or_default();
    (!is_paused).then(|| Duration::from_secs(seconds + 1))
}

/// Until the deadline; `None` when it no longer counts.
fn time_left(progressing: &DeploymentCondition, deadline: i32, now: Timestamp) -> Option<Duration> {
    // What was judged before, and the end of the last rollout, which says nothing about the one that begins.
    if let Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable") =
        progressing.reason.as_deref()
    {
        return None;
    }
    let since = progressing.last_update_time.as_ref()?.0;
    let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or_default());
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(deadline.saturating_sub(passed))
}

pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    [
        status.replicas,
        status.updated_replicas,
        status.available_replicas,
    ]
    .iter()
    .all(|count| count.unwrap_or_default() == wanted)
}

fn has_progressed(new: &DeploymentStatus, old: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or_default();
    let outdated =
        |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

/// The newest set's failure is the Deployment's.
fn copy_failure(sets: &Sets, conditions: &mut Vec<DeploymentCondition>, now: Timestamp) {
    let failure = sets.all().find_map(|set| {
        set.observed()
            .conditions?
            .into_iter()
            .find(|condition| condition.type_ == "ReplicaFailure")
    });
    match failure {
        Some(failure) => {
            let reason = failure.reason.unwrap_or_default();
            let message = failure.message.unwrap_or_default();
            set_condition(
                conditions,
                "ReplicaFailure",
                (&failure.status, &reason, message),
                now,
            );
        }
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
    }
}

/// The same status and reason change nothing; the same status keeps its transition time.
fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    type_: &str,
    (status, reason, message): (&str, &str, String),
    now: Timestamp,
) {
    let known = conditions
        .iter_mut()
        .find(|condition| condition.type_ == type_);
    let mut since = Some(Time(now));
    if let Some(known) = &known {
        if known.status == status && known.reason.as_deref() == Some(reason) {
            return;
        }
        if known.status == status {
            since = known.last_transition_time.clone();
        }
    }
    let condition = DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: since,
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
