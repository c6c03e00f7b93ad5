//! What the failure of a pod means, and when indexes that succeeded are enough. No I/O.

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule, SuccessPolicyRule,
};
use k8s_openapi::api::core::v1::Pod;

use crate::controllers::pods::{condition, has_ended, phase};
use crate::resources::job::indexes::Indexes;

/// What a job makes of a pod that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// One failure more.
    Counted,
    /// None of the job's own making.
    Ignored,
    /// The pod's index is lost.
    OfIndex,
    /// The job is lost, and why.
    OfJob(String),
}

/// Whether the pod failed. One that is being deleted has, unless the job waits for how it ends.
pub(super) fn has_failed(pod: &Pod, spec: &JobSpec) -> bool {
    if has_ended(pod) || waits_for_end(spec) {
        return phase(pod) == "Failed";
    }
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether pods are replaced only when they have ended.
pub(super) fn waits_for_end(spec: &JobSpec) -> bool {
    spec.pod_failure_policy.is_some() || spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// What the failure of the pod means.
pub(super) fn failure(pod: &Pod, spec: &JobSpec) -> Failure {
    let rules = spec.pod_failure_policy.as_ref().map(|policy| &policy.rules);
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        let Some(why) = matched(pod, rule) else {
            continue;
        };
        return match rule.action.as_str() {
            "Ignore" => Failure::Ignored,
            "FailIndex" => Failure::OfIndex,
            "FailJob" => Failure::OfJob(format!("{why} matching FailJob rule at index {index}")),
            _ => Failure::Counted,
        };
    }
    Failure::Counted
}

/// What of the pod the rule matches, for people.
fn matched(pod: &Pod, rule: &PodFailurePolicyRule) -> Option<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        let (container, code) = exit_code(pod, codes)?;
        return Some(format!(
            "Container {container} for pod {namespace}/{name} failed with exit code {code}"
        ));
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    let mut met = patterns.filter(|pattern| {
        condition(pod, &pattern.type_).is_some_and(|found| found.status == pattern.status)
    });
    let pattern = met.next()?;
    Some(format!(
        "Pod {namespace}/{name} has condition {}",
        pattern.type_
    ))
}

fn exit_code<'a>(
    pod: &'a Pod,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let main = status.container_statuses.iter().flatten();
    let init = status.init_container_statuses.iter().flatten();
    let ended = main.chain(init).filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        Some((container.name.as_str(), ended.exit_code))
    });
    let named = |name: &str| wanted.container_name.as_deref().is_none_or(|it| it == name);
    let mut matching = ended.filter(|(name, code)| {
        let listed = wanted.values.contains(code);
        *code != 0 && named(name) && listed == (wanted.operator == "In")
    });
    matching.next()
}

/// Why the job has succeeded before all its indexes have.
pub(super) fn success(spec: &JobSpec, completed: &Indexes) -> Option<String> {
    let completions = spec.completions.unwrap_or_default();
    let rules = spec.success_policy.as_ref().map(|policy| &policy.rules);
    let mut rules = rules.into_iter().flatten();
    let met = rules.position(|rule| is_met(rule, completed, completions))?;
    Some(format!("Matched rules at index {met}"))
}

fn is_met(rule: &SuccessPolicyRule, completed: &Indexes, completions: i32) -> bool {
    let among = rule.succeeded_indexes.as_ref();
    let among = among.map(|text| Indexes::read(text, completions));
    let have = match &among {
        None => completed.len(),
        Some(among) => among.in_common(completed),
    };
    match (rule.succeeded_count, among) {
        (Some(count), _) => have >= count,
        (None, Some(among)) => have == among.len(),
        (None, None) => false,
    }
}
