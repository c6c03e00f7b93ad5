//! PodDisruptionBudget: how many of some pods may be away at once because somebody wants them to.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    apimachinery::pkg::{
        apis::meta::v1::{Condition, Time},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    print,
    validate::{self, Path, int_or_percent, labels, none_negative},
};

/// The condition that says whether a pod may be evicted.
pub const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";
/// Its reason when nobody knows.
pub const SYNC_FAILED: &str = "SyncFailed";
/// What lets a pod go that is not ready, whatever the budget says.
pub const ALWAYS_ALLOW: &str = "AlwaysAllow";
const UNHEALTHY: &[&str] = &[ALWAYS_ALLOW, "IfHealthyBudget"];

impl Strategy for PodDisruptionBudget {
    const SINGULAR: &'static str = "poddisruptionbudget";
    const SHORT_NAMES: &'static [&'static str] = &["pdb"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Min Available", "Pods that have to stay."),
        Column::text("Max Unavailable", "Pods that may be away."),
        Column::integer("Allowed Disruptions", "Pods that may be evicted now."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let amount = |amount: Option<IntOrString>| match amount {
            None => "N/A".to_owned(),
            Some(IntOrString::Int(number)) => number.to_string(),
            Some(IntOrString::String(text)) => text,
        };
        let status = self.status.as_ref();
        vec![
            json!(print::name(&self.metadata)),
            json!(amount(spec.min_available)),
            json!(amount(spec.max_unavailable)),
            json!(status.map_or(0, |status| status.disruptions_allowed)),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(PodDisruptionBudgetStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = Vec::new();
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            let value = serde_json::to_value(&spec).unwrap_or_default();
            errors.push(path.invalid(value, "minAvailable and maxUnavailable cannot be both set"));
        }
        for (field, amount) in [
            ("minAvailable", &spec.min_available),
            ("maxUnavailable", &spec.max_unavailable),
        ] {
            if let Some(amount) = amount {
                errors.extend(int_or_percent(&path.child(field), amount, Some(100)));
            }
        }
        if let Some(selector) = &spec.selector {
            errors.extend(labels::selector(&path.child("selector"), selector));
        }
        if let Some(policy) = spec.unhealthy_pod_eviction_policy.as_deref()
            && !UNHEALTHY.contains(&policy)
        {
            errors.push(
                path.child("unhealthyPodEvictionPolicy")
                    .unsupported(policy, UNHEALTHY),
            );
        }
        if let Some(status) = &self.status {
            errors.extend(status_errors(&Path::new("status"), status));
        }
        errors
    }
}

/// Says in its condition whether the status allows that a pod is evicted.
pub fn tell_allowance(status: &mut PodDisruptionBudgetStatus, now: Timestamp) {
    let (truth, reason) = match status.disruptions_allowed {
        ..=0 => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    set_condition(status, truth, reason, "", now);
}

/// Says that it is not known whether a pod may be evicted, so that none is.
pub fn tell_failure(status: &mut PodDisruptionBudgetStatus, why: &str, now: Timestamp) {
    status.disruptions_allowed = 0;
    set_condition(status, "False", SYNC_FAILED, why, now);
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    truth: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == DISRUPTION_ALLOWED);
    let since = known
        .map(|at| &conditions[at])
        .filter(|condition| condition.status == truth)
        .map(|condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: truth.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match known {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

fn status_errors(path: &Path, status: &PodDisruptionBudgetStatus) -> Vec<FieldError> {
    let mut errors = validate::conditions(
        &path.child("conditions"),
        status.conditions.as_deref().unwrap_or_default(),
    );
    errors.extend(none_negative(
        path,
        &[
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ],
    ));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap()
    }

    fn errors(spec: Value) -> Vec<String> {
        let errors = Strategy::validate(&budget(spec), None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_budget_says_one_number() {
        let selector = json!({ "matchLabels": { "app": "web" } });
        assert_eq!(
            errors(json!({ "minAvailable": "50%", "selector": selector })),
            Vec::<String>::new()
        );
        assert_eq!(
            errors(
                json!({ "minAvailable": "150%", "maxUnavailable": -1, "unhealthyPodEvictionPolicy": "Never" })
            ),
            [
                "spec: Invalid value: {\"maxUnavailable\":-1,\"minAvailable\":\"150%\",\"unhealthyPodEvictionPolicy\":\"Never\"}: minAvailable and maxUnavailable cannot be both set",
                "spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%",
                "spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0",
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"Never\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
            ]
        );
    }

    #[test]
    fn the_row_says_what_is_not_applicable() {
        let row = budget(json!({ "maxUnavailable": 1 })).row(0);
        assert_eq!(Value::from(row), json!(["web", "N/A", "1", 0, "<unknown>"]));
    }

    #[test]
    fn the_generation_follows_the_spec() {
        let mut old = budget(json!({ "maxUnavailable": 1 }));
        old.prepare_create();
        let mut new = budget(json!({ "maxUnavailable": 2 }));
        new.prepare_update(&old);
        assert_eq!(new.metadata.generation, Some(2));
    }
}
