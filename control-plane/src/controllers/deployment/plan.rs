//! From a Deployment and its ReplicaSets to what is to be done in this pass. No I/O.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;

use super::rollout::{beyond_history, is_resized, new_set_size, resize, roll, stop_old};
use super::sets::{REVISION, Set, Sets, is_recreate, new_set};
use super::status::{News, is_complete, status_of};

/// One ReplicaSet as it shall be, and the size it had.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) wanted: ReplicaSet,
    pub(super) replicas_before: i32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Option<ReplicaSet>,
    pub(super) update: Vec<Change>,
    /// Names.
    pub(super) delete: Vec<String>,
    /// The Deployment's revision annotation, if it has to change.
    pub(super) revision: Option<String>,
    pub(super) status: DeploymentStatus,
    pub(super) look_again: Option<Duration>,
}

/// `owned` are the ReplicaSets that the Deployment manages; `old_pods_run` says whether a pod of an outdated one is left.
pub(super) fn plan(
    deployment: &Deployment,
    owned: &[Arc<ReplicaSet>],
    old_pods_run: impl FnOnce(&[Set]) -> bool,
    now: Timestamp,
) -> Plan {
    let mut sets = Sets::of(deployment, owned);
    let spec = deployment.spec.clone().unwrap_or_default();
    let recreate = is_recreate(deployment);
    let news = pause_news(deployment);
    let mut news = news.unwrap_or_default();
    let mut is_settled = false;
    if deployment.metadata.deletion_timestamp.is_some() {
        // Its children go with it; it only tells how far that is.
    } else if spec.paused == Some(true) || is_resized(deployment, &sets) {
        adopt_revision(deployment, &mut sets);
        resize(deployment, &mut sets, recreate);
    } else if recreate {
        adopt_revision(deployment, &mut sets);
        if !stop_old(deployment, &mut sets) && !old_pods_run(&sets.old) {
            ensure_new(deployment, &mut sets, true, &mut news);
            is_settled = !roll_recreate(deployment, &mut sets);
        }
    } else {
        ensure_new(deployment, &mut sets, false, &mut news);
        is_settled = !roll(deployment, &mut sets);
    }
    let (status, look_again) = status_of(deployment, &sets, &news, now);
    let delete = if is_settled && is_complete(deployment, &status) {
        beyond_history(deployment, &sets)
    } else {
        vec![]
    };
    Plan {
        delete,
        status,
        look_again,
        ..changes(deployment, sets)
    }
}

/// Told once when `spec.paused` changes, so that a pause does not count against the deadline.
fn pause_news(deployment: &Deployment) -> Option<News> {
    let paused = deployment.spec.as_ref()?.paused.unwrap_or(false);
    let conditions = deployment
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let progressing = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing");
    let reason = progressing.and_then(|condition| condition.reason.as_deref());
    match (paused, reason) {
        (true, reason) if reason != Some("DeploymentPaused") => Some(News::Paused),
        (false, Some("DeploymentPaused")) => Some(News::Resumed),
        _ => None,
    }
}

fn adopt_revision(deployment: &Deployment, sets: &mut Sets) {
    let revision = sets.next_revision();
    if let Some(new) = &mut sets.new {
        new.inherit(deployment, revision);
    }
}

fn ensure_new(deployment: &Deployment, sets: &mut Sets, recreate: bool, news: &mut News) {
    let revision = sets.next_revision();
    if sets.new.is_none() {
        let mut set = new_set(deployment);
        set.scale(new_set_size(deployment, sets, 0, recreate), deployment);
        *news = News::Created(set.name().to_owned());
        sets.new = Some(set);
    }
    if let Some(new) = &mut sets.new {
        new.inherit(deployment, revision);
        new.note_size(deployment);
    }
}

fn roll_recreate(deployment: &Deployment, sets: &mut Sets) -> bool {
    let wanted = super::sets::replicas(deployment);
    match &mut sets.new {
        Some(new) if new.replicas() != wanted => {
            new.scale(wanted, deployment);
            true
        }
        _ => false,
    }
}

fn changes(deployment: &Deployment, sets: Sets) -> Plan {
    let mut plan = Plan::default();
    let annotations = deployment.metadata.annotations.as_ref();
    let told = annotations
        .and_then(|annotations| annotations.get(REVISION))
        .map(String::as_str);
    let revision = sets
        .new
        .as_ref()
        .and_then(|new| new.annotation(REVISION))
        .map(str::to_owned);
    plan.revision = revision.filter(|revision| Some(revision.as_str()) != told);
    for set in sets.new.into_iter().chain(sets.old) {
        if set.stored.is_none() {
            plan.create = Some(set.wanted);
        } else if set.is_changed() {
            plan.update.push(Change {
                replicas_before: set.replicas_before(),
                wanted: set.wanted,
            });
        }
    }
    plan
}
