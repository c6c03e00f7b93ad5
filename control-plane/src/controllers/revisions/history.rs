//! Which revision the present template is, and which ones are of no use any more. No I/O.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::Resource;
use serde_json::json;

use crate::controllers::deployment::template;
use crate::controllers::pods::controlled_by;

/// What is to be done so that the present template is the newest revision.
#[derive(Debug, PartialEq)]
pub(in crate::controllers) enum Newest {
    Is(Arc<ControllerRevision>),
    /// An older one is gone back to.
    Renumber(Arc<ControllerRevision>, i64),
    Make(Box<ControllerRevision>),
}

impl Newest {
    /// The revision of the present template.
    pub(in crate::controllers) fn revision(&self) -> &ControllerRevision {
        match self {
            Self::Is(revision) | Self::Renumber(revision, _) => revision,
            Self::Make(revision) => revision,
        }
    }
}

/// The template that a revision keeps; `None` when it is none of ours.
pub(in crate::controllers) fn template_of(
    revision: &ControllerRevision,
) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

/// `revisions` are the owner's. `collisions` moves a new one to another name when the first was taken; its hash is also
/// the value of the label `hash_label`.
pub(in crate::controllers) fn newest<K: Resource<DynamicType = ()>>(
    owner: &K,
    present: &PodTemplateSpec,
    collisions: Option<i32>,
    hash_label: &str,
    revisions: &[Arc<ControllerRevision>],
) -> Newest {
    let last = revisions.iter().map(|one| one.revision).max().unwrap_or(0);
    let same = |one: &&Arc<ControllerRevision>| {
        template_of(one).is_some_and(|known| template::same(&known, present))
    };
    match revisions.iter().filter(same).max_by_key(|one| one.revision) {
        Some(known) if known.revision == last => Newest::Is(known.clone()),
        Some(known) => Newest::Renumber(known.clone(), last + 1),
        None => {
            let hash = template::hash(present, collisions.unwrap_or_default());
            let mut made = revision(owner, present, &hash, last + 1);
            let labels = made.metadata.labels.get_or_insert_default();
            labels.insert(hash_label.to_owned(), hash);
            Newest::Make(Box::new(made))
        }
    }
}

fn revision<K: Resource<DynamicType = ()>>(
    owner: &K,
    present: &PodTemplateSpec,
    hash: &str,
    number: i64,
) -> ControllerRevision {
    let meta = owner.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    let mut template = json!(present);
    // It is a patch: what goes back to it replaces the template.
    template["$patch"] = json!("replace");
    let mut revision = ControllerRevision {
        data: Some(RawExtension(json!({"spec": {"template": template}}))),
        revision: number,
        ..ControllerRevision::default()
    };
    let described = present.metadata.clone().unwrap_or_default();
    revision.metadata.name = Some(format!("{name}-{hash}"));
    revision.metadata.namespace = meta.namespace.clone();
    revision.metadata.labels = described.labels;
    revision.metadata.annotations = meta.annotations.clone();
    revision.metadata.owner_references = Some(vec![controlled_by(owner)]);
    revision
}

/// Revisions beyond the `limit` that are not `live`, the oldest first.
pub(in crate::controllers) fn outdated(
    limit: Option<i32>,
    revisions: &[Arc<ControllerRevision>],
    live: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let mut old: Vec<_> = revisions.iter().filter(|one| !live(one)).cloned().collect();
    old.sort_by_key(|one| one.revision);
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or_default();
    let surplus = old.len().saturating_sub(limit);
    old.truncate(surplus);
    old
}
