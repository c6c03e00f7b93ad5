//! Which other pods a pod minds: those it wants near or not near, and those it is to be spread among. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{Expression, Selector, SelectorExt};

use super::snapshot::PodInfo;

pub(super) type Labels = BTreeMap<String, String>;
/// Each namespace's labels.
pub(super) type Namespaces = BTreeMap<String, Labels>;

/// Pods with some labels in some namespaces, and how large "near" is: nodes that agree in the label `topology_key`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Term {
    pub(super) topology_key: String,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
    selector: Option<Selector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &ObjectMeta) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.namespace.clone());
        }
        let mut selector = selector(term.label_selector.as_ref());
        if let Some(selector) = &mut selector {
            selector.extend(own(term.match_label_keys.as_ref(), pod, Expression::In));
            selector.extend(own(
                term.mismatch_label_keys.as_ref(),
                pod,
                Expression::NotIn,
            ));
        }
        Self {
            topology_key: term.topology_key.clone(),
            namespaces,
            namespace_selector: self::selector(term.namespace_selector.as_ref()),
            selector,
        }
    }

    pub(super) fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let none = Labels::new();
        let is_inside = || {
            let labels = namespaces.get(&pod.namespace).unwrap_or(&none);
            self.namespaces.contains(&pod.namespace) || selects(&self.namespace_selector, labels)
        };
        selects(&self.selector, &pod.labels) && is_inside()
    }
}

/// What a pod says about its neighbours, and they may say about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Terms {
    /// Where all of these are.
    pub(super) near: Vec<Term>,
    /// Where none of these is.
    pub(super) apart: Vec<Term>,
    /// Rather where these are, by weight; rather not, if that is negative.
    pub(super) liked: Vec<(i64, Term)>,
}

impl Terms {
    /// `None` when the pod minds nobody, as most do.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, apart) = (&affinity.pod_affinity, &affinity.pod_anti_affinity);
        let all = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            let terms = terms.into_iter().flatten();
            terms.map(|term| Term::of(term, &pod.metadata)).collect()
        };
        let weighed = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| {
            let terms = terms.into_iter().flatten();
            let weighed = terms.map(|it| {
                let term = Term::of(&it.pod_affinity_term, &pod.metadata);
                (sign * i64::from(it.weight), term)
            });
            weighed.collect::<Vec<_>>()
        };
        let mut liked = Vec::new();
        if let Some(near) = near {
            let preferred = &near.preferred_during_scheduling_ignored_during_execution;
            liked.extend(weighed(preferred.as_ref(), 1));
        }
        if let Some(apart) = apart {
            let preferred = &apart.preferred_during_scheduling_ignored_during_execution;
            liked.extend(weighed(preferred.as_ref(), -1));
        }
        let terms = Self {
            near: all(near.as_ref().and_then(|it| {
                it.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            apart: all(apart.as_ref().and_then(|it| {
                it.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            liked,
        };
        (terms != Self::default()).then_some(terms)
    }
}

/// One of a pod's `topologySpreadConstraints`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SpreadRule {
    pub(super) topology_key: String,
    pub(super) max_skew: i64,
    /// With fewer parts than this, the emptiest one is taken to be empty.
    pub(super) min_domains: usize,
    /// Otherwise it is a wish.
    pub(super) is_required: bool,
    /// Count only nodes that the pod's node affinity admits.
    pub(super) honors_affinity: bool,
    /// Count only nodes whose taints the pod tolerates.
    pub(super) honors_taints: bool,
    selector: Option<Selector>,
}

impl SpreadRule {
    pub(super) fn all(pod: &Pod) -> Vec<Self> {
        let spec = pod.spec.as_ref();
        let constraints = spec.and_then(|spec| spec.topology_spread_constraints.as_ref());
        let constraints = constraints.into_iter().flatten();
        constraints.map(|it| Self::of(it, &pod.metadata)).collect()
    }

    fn of(constraint: &TopologySpreadConstraint, pod: &ObjectMeta) -> Self {
        let mut selector = selector(constraint.label_selector.as_ref());
        if let Some(selector) = &mut selector {
            selector.extend(own(
                constraint.match_label_keys.as_ref(),
                pod,
                Expression::In,
            ));
        }
        let min_domains = constraint.min_domains.unwrap_or(1);
        Self {
            topology_key: constraint.topology_key.clone(),
            max_skew: constraint.max_skew.into(),
            min_domains: usize::try_from(min_domains).unwrap_or(1),
            is_required: constraint.when_unsatisfiable != "ScheduleAnyway",
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector,
        }
    }

    pub(super) fn selects(&self, labels: &Labels) -> bool {
        selects(&self.selector, labels)
    }
}

/// Without a selector nothing is selected. Validation keeps out those that cannot be read.
fn selector(selector: Option<&LabelSelector>) -> Option<Selector> {
    selector.cloned()?.try_into().ok()
}

fn selects(selector: &Option<Selector>, labels: &Labels) -> bool {
    selector
        .as_ref()
        .is_some_and(|selector| selector.matches(labels))
}

/// For each of `keys` that the pod has as a label: that label's value.
fn own(
    keys: Option<&Vec<String>>,
    pod: &ObjectMeta,
    expression: fn(String, BTreeSet<String>) -> Expression,
) -> Vec<Expression> {
    let labels = pod.labels.as_ref();
    let keys = keys.into_iter().flatten();
    keys.filter_map(|key| {
        let value = labels?.get(key)?;
        Some(expression(key.clone(), [value.clone()].into()))
    })
    .collect()
}
