//! PodSecurity: the Pod Security Standards (privileged, baseline, restricted), as the labels of a namespace ask for them.
//!
//! What a pod violates of the level that is enforced is refused, of the level that warns is told. A workload's template is
//! only warned of: its pods are refused. What the audited level finds is an annotation of the audit log's event.

mod baseline;
mod checks;
mod levels;
mod profiles;
mod restricted;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec};
use serde::Deserialize;
use serde_json::Value;

use super::lookup::Lookup;
use super::warnings::Warnings;
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use checks::{Subject, Violation, violations};
use levels::{Level, Policy, Standard};

/// More pods than this are not looked at when a namespace changes.
const MAX_PODS: usize = 3000;
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";

/// Refuses, or warns of, a pod, a workload's template or a change of a namespace's labels.
pub(super) async fn admit(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    lookup: &Lookup<'_>,
    warnings: &Warnings,
) -> Result<(), ApiError> {
    let written = matches!(review.operation, Operation::Create | Operation::Update);
    if !written {
        return Ok(());
    }
    if review.is("", "namespaces") && review.subresource.is_empty() {
        return of_namespace(review, object, old, lookup, warnings).await;
    }
    if review.is("", "pods") {
        if !matches!(review.subresource, "" | "ephemeralcontainers") {
            return Ok(());
        }
        let Ok(pod) = Pod::deserialize(object) else {
            return Ok(());
        };
        let before = old.and_then(|old| Pod::deserialize(old).ok());
        if before.is_some_and(|before| !is_significant(&pod, &before)) {
            return Ok(());
        }
        let policy = policy_of(review.namespace, lookup).await?;
        return of_pod(
            &Subject::of_pod(&pod),
            &policy,
            meta::text(object, "name"),
            warnings,
        );
    }
    if !review.subresource.is_empty() {
        return Ok(());
    }
    let Some(template) = template_of(review, object) else {
        return Ok(());
    };
    let policy = policy_of(review.namespace, lookup).await?;
    advise(&Subject::of_template(&template), &policy, warnings);
    Ok(())
}

/// The template of a workload's pods.
fn template_of(review: &Review<'_>, object: &Value) -> Option<PodTemplateSpec> {
    let place = match (review.kind.group, review.kind.plural) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        ("", "podtemplates") => &object["template"],
        _ => return None,
    };
    PodTemplateSpec::deserialize(place).ok()
}

async fn policy_of(namespace: &str, lookup: &Lookup<'_>) -> Result<Policy, ApiError> {
    let found = lookup.get::<Namespace>("", namespace).await?;
    let labels = found.and_then(|namespace| namespace.metadata.labels);
    Ok(Policy::of(&labels.unwrap_or_default()).0)
}

fn of_pod(
    pod: &Subject<'_>,
    policy: &Policy,
    name: &str,
    warnings: &Warnings,
) -> Result<(), ApiError> {
    warnings.audit(
        "pod-security.kubernetes.io/enforce-policy",
        policy.enforce.to_string(),
    );
    let found = violations(pod, policy.enforce);
    if !found.is_empty() {
        let why = format!(
            "violates PodSecurity \"{}\": {}",
            policy.enforce,
            details(&found)
        );
        return Err(ApiError::forbidden("", "pods", name, &why));
    }
    advise(pod, policy, warnings);
    Ok(())
}

/// What is not refused but told.
fn advise(pod: &Subject<'_>, policy: &Policy, warnings: &Warnings) {
    let would = |standard: Standard| {
        let found = violations(pod, standard);
        let text = format!(
            "would violate PodSecurity \"{standard}\": {}",
            details(&found)
        );
        (!found.is_empty()).then_some(text)
    };
    if let Some(text) = would(policy.audit) {
        warnings.audit("pod-security.kubernetes.io/audit-violations", text);
    }
    if let Some(text) = would(policy.warn) {
        warnings.add(text);
    }
}

fn details(found: &[Violation]) -> String {
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn reasons(found: &[Violation]) -> String {
    let texts: Vec<&str> = found.iter().map(|one| one.reason.as_str()).collect();
    texts.join(", ")
}

/// Of what can change in a pod only images, and new containers, matter.
fn is_significant(new: &Pod, old: &Pod) -> bool {
    let seccomp = |pod: &Pod| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(SECCOMP)).cloned()
    };
    let images = |pod: &Pod| -> Vec<(String, Option<String>)> {
        let spec = pod.spec.clone().unwrap_or_default();
        let init = spec.init_containers.unwrap_or_default().into_iter();
        let all = init.chain(spec.containers).map(|c| (c.name, c.image));
        let debug = spec.ephemeral_containers.unwrap_or_default().into_iter();
        all.chain(debug.map(|c| (c.name, c.image))).collect()
    };
    seccomp(new) != seccomp(old) || images(new) != images(old)
}

async fn of_namespace(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    lookup: &Lookup<'_>,
    warnings: &Warnings,
) -> Result<(), ApiError> {
    let labels = |object: &Value| {
        BTreeMap::<String, String>::deserialize(&object["metadata"]["labels"]).unwrap_or_default()
    };
    let name = meta::text(object, "name");
    let (policy, errors) = Policy::of(&labels(object));
    let before = old.map(|old| Policy::of(&labels(old)));
    let was_wrong = before
        .as_ref()
        .is_some_and(|(_, errors)| !errors.is_empty());
    if !errors.is_empty() && !was_wrong {
        return Err(ApiError::invalid("", review.kind.kind, name, &errors));
    }
    let Some((before, _)) = before else {
        return Ok(());
    };
    let (new, old) = (policy.enforce, before.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let pods: Vec<Pod> = lookup.list(name).await?;
    for text in of_existing(name, &pods, new) {
        warnings.add(text);
    }
    Ok(())
}

/// What the pods of a namespace violate of a standard that is to be enforced, alike ones together.
fn of_existing(namespace: &str, pods: &[Pod], standard: Standard) -> Vec<String> {
    let mut warnings = Vec::new();
    if pods.len() > MAX_PODS {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
            pods.len()
        ));
    }
    let mut alike: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in &pods[..pods.len().min(MAX_PODS)] {
        let found = violations(&Subject::of_pod(pod), standard);
        if !found.is_empty() {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            alike.entry(reasons(&found)).or_default().push(name);
        }
    }
    if !alike.is_empty() {
        warnings.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut texts: Vec<String> = alike
        .into_iter()
        .map(|(reasons, names)| {
            let first = names.iter().min().copied().unwrap_or_default();
            match names.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                more => format!("{first} (and {} other pods): {reasons}", more - 1),
            }
        })
        .collect();
    texts.sort();
    warnings.extend(texts);
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    fn policy(labels: Value) -> Policy {
        let labels: BTreeMap<String, String> = serde_json::from_value(labels).unwrap();
        let (policy, errors) = Policy::of(&labels);
        assert_eq!(errors, []);
        policy
    }

    #[test]
    fn what_is_enforced_is_refused_and_what_warns_is_told() {
        let pod = pod(
            "p",
            json!({"hostNetwork": true, "containers": [{"name": "a"}]}),
        );
        let baseline = policy(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
        let warnings = Warnings::default();
        let refused = of_pod(&Subject::of_pod(&pod), &baseline, "p", &warnings).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
        );
        assert_eq!(warnings.take(), Vec::<String>::new());
        let warned = policy(json!({
            "pod-security.kubernetes.io/warn": "baseline", "pod-security.kubernetes.io/warn-version": "v1.30",
        }));
        of_pod(&Subject::of_pod(&pod), &warned, "p", &warnings).unwrap();
        assert_eq!(
            warnings.take(),
            ["would violate PodSecurity \"baseline:v1.30\": host namespaces (hostNetwork=true)"]
        );
    }

    #[test]
    fn a_changed_label_is_told_about_the_pods_that_are_there() {
        let host = || json!({"hostPID": true, "containers": [{"name": "a"}]});
        let pods = [
            pod("b", host()),
            pod("a", host()),
            pod(
                "c",
                json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]}),
            ),
            pod("d", json!({"containers": [{"name": "a"}]})),
        ];
        let baseline = policy(json!({"pod-security.kubernetes.io/enforce": "baseline"}));
        assert_eq!(
            of_existing("ns", &pods, baseline.enforce),
            [
                "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 1 other pod): host namespaces",
                "c: privileged",
            ]
        );
    }

    #[test]
    fn only_images_and_new_containers_are_looked_at_again() {
        let old = pod("a", json!({"containers": [{"name": "a", "image": "b:1"}]}));
        let mut new = old.clone();
        assert!(!is_significant(&new, &old));
        new.spec.as_mut().unwrap().containers[0].image = Some("b:2".into());
        assert!(is_significant(&new, &old));
        let debugged = pod(
            "a",
            json!({
                "containers": [{"name": "a", "image": "b:1"}], "ephemeralContainers": [{"name": "d", "image": "e"}],
            }),
        );
        assert!(is_significant(&debugged, &old));
    }
}
