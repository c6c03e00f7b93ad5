//! Who a StatefulSet's pods are: their names, and what of them stays when they are made anew. No I/O.

use std::ops::Range;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};

use crate::controllers::pods::controlled_by;

/// Which revision of the template a pod is of.
pub(super) const REVISION: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The numbers of the pods that are wanted.
pub(super) fn ordinals(spec: &StatefulSetSpec) -> Range<i32> {
    let first = spec.ordinals.as_ref().and_then(|it| it.start).unwrap_or(0);
    first..first.saturating_add(spec.replicas.unwrap_or(1).max(0))
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{ordinal}")
}

/// The number in a pod's name; `None` when it is not a name that this set gives.
pub(super) fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = set.metadata.name.as_deref()?;
    let number = pod.metadata.name.as_deref()?.strip_prefix(name)?;
    let ordinal = number.strip_prefix('-')?.parse().ok()?;
    (ordinal >= 0 && pod.metadata.name == Some(pod_name(set, ordinal))).then_some(ordinal)
}

pub(super) fn revision_of(pod: &Pod) -> Option<&str> {
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(REVISION).map(String::as_str)
}

/// Names of the claims of a pod of this name.
pub(super) fn claim_names(spec: &StatefulSetSpec, pod: &str) -> impl Iterator<Item = String> {
    let templates = spec.volume_claim_templates.iter().flatten();
    templates.map(move |template| claim_name(template, pod))
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    let name = template.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{pod}")
}

/// The claims of a pod of this name. They outlive it, and whoever owns them is told by [`super::retention`].
pub(super) fn claims_for(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &str,
) -> Vec<PersistentVolumeClaim> {
    let templates = spec.volume_claim_templates.iter().flatten();
    let claims = templates.map(|template| {
        let mut claim = template.clone();
        claim.status = None;
        claim.metadata.name = Some(claim_name(template, pod));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim
    });
    claims.collect()
}

/// The set's pod of this number, by a revision's template.
pub(super) fn pod_for(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let name = pod_name(set, ordinal);
    let described = template.metadata.clone().unwrap_or_default();
    let mut inner = template.spec.clone().unwrap_or_default();
    inner.hostname = Some(name.clone());
    inner.subdomain = spec.service_name.clone().filter(|it| !it.is_empty());
    let volumes = inner.volumes.get_or_insert_default();
    for claim in spec.volume_claim_templates.iter().flatten() {
        let volume = claim.metadata.name.clone().unwrap_or_default();
        // A claim goes before a volume of the template that has its name.
        volumes.retain(|other| other.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(claim, &name),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    let mut pod = Pod {
        spec: Some(inner),
        ..Pod::default()
    };
    let mut labels = described.labels.unwrap_or_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    pod.metadata.name = Some(name);
    pod.metadata.namespace = set.metadata.namespace.clone();
    pod.metadata.labels = Some(labels);
    pod.metadata.annotations = described.annotations;
    pod.metadata.finalizers = described.finalizers;
    pod.metadata.owner_references = Some(vec![controlled_by(set)]);
    pod
}
