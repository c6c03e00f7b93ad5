//! What controllers ask about a pod: whose it is, whether it counts, whether it is ready and since when.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, ObjectMeta, OwnerReference, Time,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::Resource;
use kube::core::{Selector, SelectorExt};

/// The one owner that manages the object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// A reference that makes `owner` the manager of what carries it.
pub(crate) fn controlled_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending")
}

pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Runs or will run.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Why a pod is taken away (KEP-3329).
pub(crate) const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// The condition that says of `pod` why it is taken away: since when that was first said.
pub(crate) fn disrupted(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> PodCondition {
    let said = condition(pod, DISRUPTION_TARGET).filter(|said| said.status == "True");
    let since = said.and_then(|said| said.last_transition_time.clone());
    PodCondition {
        type_: DISRUPTION_TARGET.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..PodCondition::default()
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// When the pod got its node; one that was made with it has it since then.
pub(crate) fn bound_since(pod: &Pod) -> Option<Timestamp> {
    let scheduled = condition(pod, "PodScheduled").filter(|it| it.status == "True");
    scheduled
        .and_then(|it| it.last_transition_time.as_ref())
        .or(pod.metadata.creation_timestamp.as_ref())
        .map(|time| time.0)
}

/// How long until the pod has been ready for `min_ready`: zero when it is available, `None` when it is not ready at all.
pub(crate) fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    let ready_for = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(min_ready.saturating_sub(ready_for))
}

pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// The words under which the shared cache of pods is searched.
pub(crate) fn index(pod: &Pod) -> Vec<String> {
    let mut words = vec![match controller_of(&pod.metadata) {
        Some(owner) => owned_by(&owner.uid),
        None => orphans_in(pod.metadata.namespace.as_deref().unwrap_or_default()),
    }];
    words.extend(node_of(pod).map(on_node));
    words
}

pub(crate) fn owned_by(uid: &str) -> String {
    format!("owner/{uid}")
}

pub(crate) fn orphans_in(namespace: &str) -> String {
    format!("orphan/{namespace}")
}

pub(crate) fn on_node(name: &str) -> String {
    format!("node/{name}")
}

/// Which pods around an object are its own.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Claims {
    /// Pods without a manager that the selector selects.
    pub(crate) adopt: Vec<Arc<Pod>>,
    /// Its pods that the selector selects no more.
    pub(crate) release: Vec<Arc<Pod>>,
    /// All that are its own, those that are adopted included.
    pub(crate) own: Vec<Arc<Pod>>,
}

/// `around` are the pods that the owner manages and those in its namespace that nobody manages.
pub(crate) fn claims(owner: &ObjectMeta, selector: &LabelSelector, around: &[Arc<Pod>]) -> Claims {
    let mut claims = Claims::default();
    let lives = owner.deletion_timestamp.is_none();
    for pod in around {
        let selected = selects(selector, &pod.metadata);
        match controller_of(&pod.metadata) {
            Some(manager) if manager.uid != uid(owner) => {}
            Some(_) if selected => claims.own.push(pod.clone()),
            Some(_) if lives => claims.release.push(pod.clone()),
            None if selected && lives && is_active(pod) => {
                claims.adopt.push(pod.clone());
                claims.own.push(pod.clone());
            }
            Some(_) | None => {}
        }
    }
    claims
}

/// A selector that cannot be read selects nothing; validation keeps such objects out.
pub(crate) fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    let Ok(selector) = Selector::try_from(selector.clone()) else {
        return false;
    };
    meta.labels.as_ref().map_or_else(
        || selector.matches(&Default::default()),
        |labels| selector.matches(labels),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{at, pod};

    #[test]
    fn available_counts_from_when_it_became_ready() {
        let pod = pod("a").ready_at(100).build();
        assert_eq!(
            available_in(&pod, Duration::ZERO, at(100)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            available_in(&pod, Duration::from_secs(10), at(104)),
            Some(Duration::from_secs(6))
        );
        assert_eq!(
            available_in(&pod, Duration::from_secs(10), at(111)),
            Some(Duration::ZERO)
        );
        assert_eq!(
            available_in(
                &super::super::testing::pod("b").build(),
                Duration::ZERO,
                at(0)
            ),
            None
        );
    }

    #[test]
    fn a_pod_that_ends_or_has_ended_is_not_active() {
        assert!(is_active(&pod("a").build()));
        assert!(!is_active(&pod("a").phase("Failed").build()));
        assert!(!is_active(&pod("a").terminating().build()));
    }
}
