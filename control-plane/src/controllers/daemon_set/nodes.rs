//! Which nodes a DaemonSet's pod is for, and what a pod for one of them looks like. No I/O.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::controllers::pods::{controlled_by, node_of};
use crate::scheduler::{suits, tolerates};

/// Which revision of the template a pod is of.
pub(super) const REVISION: &str = "controller-revision-hash";
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
const POD_GENERATION: &str = "pod-template-generation";
const NODE_NAME: &str = "metadata.name";

/// Daemons stay where other pods would have to go.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for those that are on the node's own network.
const TOLERATED_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What is to be on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A pod.
    Wanted,
    /// A pod that is there already may stay.
    Kept,
    /// No pod.
    Barred,
}

/// The specification of the set's pods, with what all daemons tolerate.
pub(super) fn pod_spec(spec: &DaemonSetSpec) -> PodSpec {
    let mut pod = spec.template.spec.clone().unwrap_or_default();
    let on_host = (pod.host_network == Some(true)).then_some(TOLERATED_ON_HOST);
    let tolerations = pod.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(on_host) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod
}

/// What is to be on the node of pods like `pod`.
pub(super) fn place(pod: &PodSpec, node: &Node) -> Place {
    let name = node.metadata.name.as_deref();
    let named = pod.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some_and(|wanted| Some(wanted) != name) || !suits(pod, node) {
        return Place::Barred;
    }
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let bars = |effect: &str| {
        let mut taints = taints.into_iter().flatten();
        taints.any(|taint| taint.effect == effect && !tolerates(tolerations, taint))
    };
    match (bars("NoExecute"), bars("NoSchedule")) {
        (true, _) => Place::Barred,
        (false, true) => Place::Kept,
        (false, false) => Place::Wanted,
    }
}

/// The node that the pod is on, or is for.
pub(super) fn node_for(pod: &Pod) -> Option<&str> {
    node_of(pod).or_else(|| {
        let affinity = pod
            .spec
            .as_ref()?
            .affinity
            .as_ref()?
            .node_affinity
            .as_ref()?;
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()?;
        let fields = required.node_selector_terms.iter();
        let mut fields = fields.flat_map(|term| term.match_fields.iter().flatten());
        let named = fields.find(|field| field.key == NODE_NAME)?;
        named.values.as_ref()?.first().map(String::as_str)
    })
}

/// A pod of the set for the node.
pub(super) fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, revision: &str, node: &str) -> Pod {
    let described = spec.template.metadata.clone().unwrap_or_default();
    let mut inner = pod_spec(spec);
    let affinity = inner.affinity.get_or_insert_default();
    let required = affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    // What the template requires of nodes was looked at; now only this one will do.
    required.node_selector_terms = vec![NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: NODE_NAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        ..NodeSelectorTerm::default()
    }];
    let mut pod = Pod {
        spec: Some(inner),
        ..Pod::default()
    };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    pod.metadata.namespace = set.metadata.namespace.clone();
    pod.metadata.generate_name = Some(format!("{name}-"));
    pod.metadata.annotations = described.annotations;
    pod.metadata.finalizers = described.finalizers;
    let mut labels = described.labels.unwrap_or_default();
    labels.insert(REVISION.to_owned(), revision.to_owned());
    let annotations = set.metadata.annotations.as_ref();
    let generation = annotations.and_then(|all| all.get(TEMPLATE_GENERATION));
    labels.extend(generation.map(|it| (POD_GENERATION.to_owned(), it.clone())));
    pod.metadata.labels = Some(labels);
    pod.metadata.owner_references = Some(vec![controlled_by(set)]);
    pod
}
