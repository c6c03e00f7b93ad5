//! A ClusterRole with an `aggregationRule` has the rules of all ClusterRoles that its selectors choose.

use std::time::Duration;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};
use super::pods::selects;

const WORKERS: usize = 1;

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    context.caches.cluster_roles.on_change(move |_, _| {
        // Any role may be part of any other.
        keys.add(Key::default());
    });
    context
        .clone()
        .drive("role-aggregation", wakeups, WORKERS, reconcile)
}

async fn reconcile(context: &Context, _all: &Key) -> Result<Option<Duration>> {
    let roles = context.caches.cluster_roles.list();
    let roles: Vec<&ClusterRole> = roles.iter().map(|role| &**role).collect();
    let api: Api<ClusterRole> = Api::all(context.client.clone());
    for role in &roles {
        let Some(rules) = aggregated(role, &roles) else {
            continue;
        };
        let name = role.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": {"resourceVersion": role.metadata.resource_version},
            "rules": rules,
        });
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    Ok(None)
}

/// The rules that an aggregated role is to have; None if it has them, or is not aggregated. `all` is in order of names.
fn aggregated(role: &ClusterRole, all: &[&ClusterRole]) -> Option<Vec<PolicyRule>> {
    let rule = role.aggregation_rule.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in rule.cluster_role_selectors.iter().flatten() {
        let chosen = all.iter().filter(|other| {
            other.metadata.name != role.metadata.name && selects(selector, &other.metadata)
        });
        for rule in chosen.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (rules != role.rules.clone().unwrap_or_default()).then_some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, label: &str, what: &[&str]) -> ClusterRole {
        let rules: Vec<_> = what
            .iter()
            .map(|what| json!({"verbs": ["get"], "apiGroups": [""], "resources": [what]}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {label: "true"}}, "rules": rules,
        }))
        .unwrap()
    }

    #[test]
    fn an_aggregated_role_has_each_rule_of_its_parts_once() {
        let mut sum = role("sum", "part", &["stale"]);
        assert_eq!(aggregated(&sum, &[&sum]), None);
        sum.aggregation_rule = serde_json::from_value(
            json!({"clusterRoleSelectors": [{"matchLabels": {"part": "true"}}]}),
        )
        .unwrap();
        let (a, b) = (
            role("a", "part", &["pods", "nodes"]),
            role("b", "part", &["nodes"]),
        );
        let other = role("c", "other", &["secrets"]);
        let rules = aggregated(&sum, &[&a, &b, &other, &sum]).unwrap();
        assert_eq!(Some(&rules), a.rules.as_ref());
        sum.rules = Some(rules);
        assert_eq!(aggregated(&sum, &[&a, &b, &other, &sum]), None);
        assert_eq!(aggregated(&sum, &[&other, &sum]), Some(vec![]));
    }
}
