//! A Deployment's ReplicaSets as a plan sees and changes them: numbers, ages, and the annotations that say what they
//! were sized for.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::template::{HASH_LABEL, hash, same};
use crate::controllers::pods::controlled_by;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// What a ReplicaSet does not inherit from its Deployment.
const OWN_ANNOTATIONS: [&str; 6] = [
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
];

/// One ReplicaSet: as it is stored, and as it shall be.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// `None`: to be created.
    pub(super) stored: Option<Arc<ReplicaSet>>,
    pub(super) wanted: ReplicaSet,
}

impl Set {
    pub(super) fn of(stored: Arc<ReplicaSet>) -> Self {
        Self {
            wanted: (*stored).clone(),
            stored: Some(stored),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.wanted.metadata.name.as_deref().unwrap_or_default()
    }

    pub(super) fn replicas(&self) -> i32 {
        self.wanted
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or_default()
    }

    /// As stored, before this plan changed it.
    pub(super) fn replicas_before(&self) -> i32 {
        self.stored
            .as_ref()
            .and_then(|set| set.spec.as_ref()?.replicas)
            .unwrap_or_default()
    }

    pub(super) fn observed(&self) -> k8s_openapi::api::apps::v1::ReplicaSetStatus {
        self.stored
            .as_ref()
            .and_then(|set| set.status.clone())
            .unwrap_or_default()
    }

    pub(super) fn available(&self) -> i32 {
        self.observed().available_replicas.unwrap_or_default()
    }

    pub(super) fn created(&self) -> Timestamp {
        // One that is still to be created is the youngest.
        self.wanted
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MAX, |time| time.0)
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.wanted
            .metadata
            .annotations
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    pub(super) fn annotated_number(&self, key: &str) -> Option<i32> {
        self.annotation(key)?.parse().ok()
    }

    pub(super) fn revision(&self) -> i64 {
        self.annotation(REVISION)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    }

    /// Sizes the set and notes what for.
    pub(super) fn scale(&mut self, replicas: i32, deployment: &Deployment) {
        if let Some(spec) = &mut self.wanted.spec {
            spec.replicas = Some(replicas);
        }
        self.note_size(deployment);
    }

    pub(super) fn note_size(&mut self, deployment: &Deployment) {
        let desired = replicas(deployment);
        let annotations = self.wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(DESIRED_REPLICAS.into(), desired.to_string());
        annotations.insert(
            MAX_REPLICAS.into(),
            (desired + max_surge(deployment)).to_string(),
        );
    }

    pub(super) fn is_changed(&self) -> bool {
        self.stored
            .as_ref()
            .is_some_and(|stored| **stored != self.wanted)
    }

    /// Brings over what the Deployment's own metadata says, and makes this the newest revision.
    pub(super) fn inherit(&mut self, deployment: &Deployment, revision: i64) {
        let known = self.revision();
        let annotations = self.wanted.metadata.annotations.get_or_insert_default();
        annotations.extend(inherited(deployment));
        if known < revision {
            if known > 0 {
                let history = annotations.entry(REVISION_HISTORY.into()).or_default();
                if !history.is_empty() {
                    history.push(',');
                }
                history.push_str(&known.to_string());
            }
            annotations.insert(REVISION.into(), revision.to_string());
        }
        if let Some(spec) = &mut self.wanted.spec {
            spec.min_ready_seconds = deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds);
        }
    }
}

fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations
        .into_iter()
        .filter(|(key, _)| !OWN_ANNOTATIONS.contains(&key.as_str()))
        .collect()
}

/// All of one Deployment's sets.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    /// The one whose template is the Deployment's.
    pub(super) new: Option<Set>,
    /// Oldest first.
    pub(super) old: Vec<Set>,
}

impl Sets {
    pub(super) fn of(deployment: &Deployment, owned: &[Arc<ReplicaSet>]) -> Self {
        let template = deployment
            .spec
            .as_ref()
            .map(|spec| spec.template.clone())
            .unwrap_or_default();
        let mut sets: Vec<Set> = owned.iter().cloned().map(Set::of).collect();
        sets.sort_by(|a, b| (a.created(), a.name()).cmp(&(b.created(), b.name())));
        let is_new = |set: &Set| {
            let own = set
                .wanted
                .spec
                .as_ref()
                .and_then(|spec| spec.template.as_ref());
            own.is_some_and(|own| same(own, &template))
        };
        let new = sets.iter().position(is_new).map(|at| sets.remove(at));
        Self { new, old: sets }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.new.iter().chain(&self.old)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Set> {
        self.new.iter_mut().chain(&mut self.old)
    }

    pub(super) fn total(&self) -> i32 {
        self.all().map(Set::replicas).sum()
    }

    pub(super) fn next_revision(&self) -> i64 {
        self.old.iter().map(Set::revision).max().unwrap_or_default() + 1
    }
}

/// The ReplicaSet that a new template needs, without size or revision yet.
pub(super) fn new_set(deployment: &Deployment) -> Set {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count)
        .unwrap_or_default();
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template;
    template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let mut selector: LabelSelector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH_LABEL.into(), hash.clone());
    let mut wanted = ReplicaSet {
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template.clone()),
        }),
        ..ReplicaSet::default()
    };
    let meta = &mut wanted.metadata;
    meta.name = Some(format!(
        "{}-{hash}",
        deployment.metadata.name.as_deref().unwrap_or_default()
    ));
    meta.namespace = deployment.metadata.namespace.clone();
    meta.labels = template.metadata.and_then(|meta| meta.labels);
    meta.owner_references = Some(vec![controlled_by(deployment)]);
    Set {
        stored: None,
        wanted,
    }
}

pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// How many pods above the wanted number a rollout may have.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    fences(deployment).0
}

/// How many pods below the wanted number a rollout may have.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let unavailable = fences(deployment).1;
    if is_recreate(deployment) {
        0
    } else {
        unavailable.min(replicas(deployment))
    }
}

fn fences(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) {
        return (0, 0);
    }
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy
        .and_then(|strategy| strategy.rolling_update.clone())
        .unwrap_or_default();
    let quarter = IntOrString::String("25%".into());
    let wanted = replicas(deployment);
    let surge = resolve(rolling.max_surge.as_ref().unwrap_or(&quarter), wanted, true);
    let unavailable = resolve(
        rolling.max_unavailable.as_ref().unwrap_or(&quarter),
        wanted,
        false,
    );
    // With neither allowed nothing could ever move.
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|digits| digits.parse().ok())
                .unwrap_or_default();
            let hundredths = percent * i64::from(total);
            let number = if round_up {
                (hundredths + 99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(number).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        let quarter = IntOrString::String("25%".into());
        for (total, surge, unavailable) in [(0, 0, 0), (1, 1, 0), (3, 1, 0), (4, 1, 1), (10, 3, 2)]
        {
            assert_eq!(resolve(&quarter, total, true), surge, "{total}");
            assert_eq!(resolve(&quarter, total, false), unavailable, "{total}");
        }
        assert_eq!(resolve(&IntOrString::Int(2), 100, true), 2);
        assert_eq!(resolve(&IntOrString::String("no".into()), 100, true), 0);
    }

    #[test]
    fn a_reused_set_remembers_the_revisions_it_had() {
        let mut set = Set {
            stored: None,
            wanted: ReplicaSet {
                spec: Some(Default::default()),
                ..Default::default()
            },
        };
        let deployment = Deployment::default();
        for revision in [1, 3, 3, 7] {
            set.inherit(&deployment, revision);
        }
        assert_eq!(set.revision(), 7);
        assert_eq!(set.annotation(REVISION_HISTORY), Some("1,3"));
    }
}
