//! With what a pod's claims go: with the set, with a pod that is one too many, or with neither. No I/O.
//!
//! Garbage collection removes a claim whose owners are gone, so that owners are all that is decided here.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::controllers::pods::{controlled_by, uid};

const DELETE: &str = "Delete";

/// When the set says that claims go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    with_set: bool,
    when_scaled_down: bool,
}

impl Policy {
    pub(super) fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        let goes = |when: Option<&String>| when.is_some_and(|when| when == DELETE);
        Self {
            with_set: goes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            when_scaled_down: goes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
}

/// The claim's owners as they shall be; `None` when they are so. `condemned`: its pod is one too many.
pub(super) fn owners(
    policy: Policy,
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let before = claim.metadata.owner_references.clone().unwrap_or_default();
    let with_pod = condemned && policy.when_scaled_down;
    let with_set = policy.with_set && !with_pod;
    let mut after: Vec<OwnerReference> = before
        .iter()
        .filter(|owner| owner.uid != uid(&set.metadata) && owner.uid != uid(&pod.metadata))
        .cloned()
        .collect();
    let plain = |owner: OwnerReference| OwnerReference {
        block_owner_deletion: None,
        controller: None,
        ..owner
    };
    if with_set {
        after.push(plain(controlled_by(set)));
    }
    if with_pod {
        after.push(plain(controlled_by(pod)));
    }
    let same = before.len() == after.len()
        && after
            .iter()
            .all(|one| before.iter().any(|other| other.uid == one.uid));
    (!same).then_some(after)
}

/// The claim is going, or belongs to an earlier pod of this name and goes with it: a pod that is made now would lose it.
pub(super) fn is_stale(
    claim: &PersistentVolumeClaim,
    pod_name: &str,
    living: Option<&Pod>,
) -> bool {
    if claim.metadata.deletion_timestamp.is_some() {
        return true;
    }
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut pods = owners.filter(|owner| owner.kind == "Pod" && owner.name == pod_name);
    pods.any(|owner| living.is_none_or(|pod| uid(&pod.metadata) != owner.uid))
}
