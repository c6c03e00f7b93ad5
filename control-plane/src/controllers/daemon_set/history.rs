//! The templates that a DaemonSet has had, as ControllerRevisions: what a rollout goes back to. No I/O.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::json;

use super::nodes::REVISION;
use crate::controllers::deployment::template;
use crate::controllers::pods::controlled_by;

/// What is to be done so that the present template is the newest revision.
#[derive(Debug, PartialEq)]
pub(super) enum Newest {
    Is(Arc<ControllerRevision>),
    /// An older one is gone back to.
    Renumber(Arc<ControllerRevision>, i64),
    Make(Box<ControllerRevision>),
}

impl Newest {
    /// Names the present template on its pods.
    pub(super) fn hash(&self) -> String {
        let revision = match self {
            Self::Is(revision) | Self::Renumber(revision, _) => &**revision,
            Self::Make(revision) => revision,
        };
        hash_of(revision).to_owned()
    }
}

pub(super) fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get(REVISION));
    hash.map(String::as_str).unwrap_or_default()
}

fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

pub(super) fn newest(
    set: &DaemonSet,
    spec: &DaemonSetSpec,
    revisions: &[Arc<ControllerRevision>],
) -> Newest {
    let last = revisions.iter().map(|one| one.revision).max().unwrap_or(0);
    let same = |one: &&Arc<ControllerRevision>| {
        template_of(one).is_some_and(|known| template::same(&known, &spec.template))
    };
    match revisions.iter().filter(same).max_by_key(|one| one.revision) {
        Some(known) if known.revision == last => Newest::Is(known.clone()),
        Some(known) => Newest::Renumber(known.clone(), last + 1),
        None => Newest::Make(Box::new(revision(set, spec, last + 1))),
    }
}

fn revision(set: &DaemonSet, spec: &DaemonSetSpec, number: i64) -> ControllerRevision {
    let status = set.status.as_ref();
    let collisions = status.and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions.unwrap_or_default());
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let mut template = json!(spec.template);
    // It is a patch: what goes back to it replaces the template.
    template["$patch"] = json!("replace");
    let mut revision = ControllerRevision {
        data: Some(RawExtension(json!({"spec": {"template": template}}))),
        revision: number,
        ..ControllerRevision::default()
    };
    let described = spec.template.metadata.clone().unwrap_or_default();
    let mut labels = described.labels.unwrap_or_default();
    labels.insert(REVISION.to_owned(), hash.clone());
    revision.metadata.name = Some(format!("{name}-{hash}"));
    revision.metadata.namespace = set.metadata.namespace.clone();
    revision.metadata.labels = Some(labels);
    revision.metadata.annotations = set.metadata.annotations.clone();
    revision.metadata.owner_references = Some(vec![controlled_by(set)]);
    revision
}

/// Revisions beyond the limit that no pod is of, the oldest first.
pub(super) fn outdated(
    spec: &DaemonSetSpec,
    revisions: &[Arc<ControllerRevision>],
    newest: &str,
    pods: &[Arc<Pod>],
) -> Vec<Arc<ControllerRevision>> {
    let labels = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref());
    let mut live: BTreeSet<&str> = labels
        .filter_map(|labels| labels.get(REVISION).map(String::as_str))
        .collect();
    live.insert(newest);
    let mut old: Vec<_> = revisions
        .iter()
        .filter(|one| !live.contains(hash_of(one)))
        .cloned()
        .collect();
    old.sort_by_key(|one| one.revision);
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or_default();
    let surplus = old.len().saturating_sub(limit);
    old.truncate(surplus);
    old
}
