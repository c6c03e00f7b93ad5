//! What disruption budgets say to the eviction of a pod. No I/O.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::api::error::ApiError;
use crate::controllers::pods::{has_ended, is_ready, phase, selects};
use crate::resources::poddisruptionbudget::{
    ALWAYS_ALLOW, DISRUPTION_ALLOWED, SYNC_FAILED, tell_allowance,
};

/// More evictions than this that no controller has seen yet are too many.
const MOST_PENDING: usize = 2000;
/// When it is worth trying again while a budget is being worked on, in seconds.
const SOON: u32 = 10;

/// How a pod may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// It counts for nothing as long as it is not ready: it may go if it is still as it was seen.
    IfUnchanged,
    /// The budget has to count it.
    Counted,
}

/// Whether the pod's going disrupts nothing, whatever the budgets say.
pub(super) fn is_beyond_budgets(pod: &Pod) -> bool {
    has_ended(pod) || phase(pod) == "Pending" || pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod of which nobody knows if it will become ready may go only as it was seen.
pub(super) fn may_become_ready(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// The one budget that guards the pod, if any.
pub(super) fn guarding(
    pod: &Pod,
    budgets: Vec<PodDisruptionBudget>,
) -> Result<Option<PodDisruptionBudget>, ApiError> {
    let guards = |budget: &PodDisruptionBudget| {
        let selector = budget.spec.as_ref().and_then(|it| it.selector.as_ref());
        selector.is_some_and(|selector| selects(selector, &pod.metadata))
    };
    let mut guarding = budgets.into_iter().filter(guards);
    match (guarding.next(), guarding.next()) {
        (Some(_), Some(_)) => Err(ApiError::several_budgets()),
        (one, _) => Ok(one),
    }
}

/// How the pod may go past the budget.
pub(super) fn leave(pod: &Pod, budget: &PodDisruptionBudget) -> Leave {
    if is_ready(pod) {
        return Leave::Counted;
    }
    let policy = budget
        .spec
        .as_ref()
        .and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let status = budget.status.clone().unwrap_or_default();
    let has_enough = status.desired_healthy > 0 && status.current_healthy >= status.desired_healthy;
    match policy == Some(ALWAYS_ALLOW) || has_enough {
        true => Leave::IfUnchanged,
        false => Leave::Counted,
    }
}

fn name(budget: &PodDisruptionBudget) -> &str {
    budget.metadata.name.as_deref().unwrap_or_default()
}

/// The budget is not ready to answer.
pub(super) fn in_progress(name: &str) -> ApiError {
    ApiError::disruption(
        &format!("The disruption budget {name} is still being processed by the server."),
        SOON,
    )
}

/// The budget's status once it has let the pod go, or why it does not.
pub(super) fn spend(
    budget: &PodDisruptionBudget,
    pod: &str,
    now: Timestamp,
) -> Result<PodDisruptionBudgetStatus, ApiError> {
    let mut status = budget.status.clone().unwrap_or_default();
    let name = name(budget);
    if status.observed_generation.unwrap_or_default()
        < budget.metadata.generation.unwrap_or_default()
    {
        return Err(in_progress(name));
    }
    let forbidden = |why: &str| ApiError::forbidden("policy", "poddisruptionbudget", name, why);
    if status.disruptions_allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let pending = status.disrupted_pods.get_or_insert_default();
    if pending.len() > MOST_PENDING {
        return Err(forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if status.disruptions_allowed == 0 {
        return Err(ApiError::disruption(&why_not(name, &status), 0));
    }
    pending.insert(pod.to_owned(), Time(now));
    status.disruptions_allowed -= 1;
    if status.disruptions_allowed == 0 {
        tell_allowance(&mut status, now);
    }
    Ok(status)
}

fn why_not(name: &str, status: &PodDisruptionBudgetStatus) -> String {
    let mut conditions = status.conditions.iter().flatten();
    let said = conditions.find(|condition| {
        condition.type_ == DISRUPTION_ALLOWED
            && condition.status == "False"
            && !condition.message.is_empty()
    });
    let (desired, current) = (status.desired_healthy, status.current_healthy);
    let subject = format!("The disruption budget {name}");
    match said {
        // Then the numbers are not to be trusted.
        Some(said) if said.reason == SYNC_FAILED => format!(
            "{subject} does not allow evicting pods currently because it failed sync: {}",
            said.message
        ),
        _ if current <= desired => {
            format!("{subject} needs {desired} healthy pods and has {current} currently")
        }
        Some(said) => format!(
            "{subject} does not allow evicting pods currently ({}): {}",
            said.reason, said.message
        ),
        None => format!("{subject} does not allow evicting pods currently"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::testing::{at, pod};
    use crate::resources::poddisruptionbudget::tell_failure;

    fn budget(selector: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 1},
            "spec": {"selector": selector},
            "status": status,
        }))
        .expect("a budget")
    }

    fn web(status: Value) -> PodDisruptionBudget {
        budget(json!({"matchLabels": {"app": "web"}}), status)
    }

    #[test]
    fn one_budget_guards_a_pod_and_two_are_too_many() {
        let pod = pod("a").label("app", "web").build();
        let none = json!({});
        let other = budget(json!({"matchLabels": {"app": "db"}}), none.clone());
        assert_eq!(guarding(&pod, vec![other.clone()]), Ok(None));
        let without_selector = budget(Value::Null, none.clone());
        assert_eq!(guarding(&pod, vec![without_selector]), Ok(None));
        let found = guarding(&pod, vec![other, web(none.clone())]);
        assert_eq!(found.map(|it| it.is_some()), Ok(true));
        let everything = budget(json!({}), none.clone());
        let refused = guarding(&pod, vec![everything, web(none)]).map(|_| ());
        let status = refused.expect_err("refused").status();
        assert_eq!(
            status,
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 500,
                "message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            })
        );
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_when_enough_others_are() {
        let sick = pod("a").phase("Running").build();
        let enough = web(json!({"currentHealthy": 2, "desiredHealthy": 2}));
        assert_eq!(leave(&sick, &enough), Leave::IfUnchanged);
        let few = web(json!({"currentHealthy": 1, "desiredHealthy": 2}));
        assert_eq!(leave(&sick, &few), Leave::Counted);
        assert_eq!(
            leave(&pod("a").ready_at(0).build(), &enough),
            Leave::Counted
        );
        let mut always = few;
        let policy = always.spec.get_or_insert_default();
        policy.unhealthy_pod_eviction_policy = Some("AlwaysAllow".into());
        assert_eq!(leave(&sick, &always), Leave::IfUnchanged);
    }

    #[test]
    fn pods_that_do_not_run_are_beyond_budgets() {
        assert!(is_beyond_budgets(&pod("a").build()));
        assert!(is_beyond_budgets(&pod("a").phase("Failed").build()));
        assert!(is_beyond_budgets(
            &pod("a").ready_at(0).terminating().build()
        ));
        assert!(!is_beyond_budgets(&pod("a").ready_at(0).build()));
    }

    fn cause(error: &ApiError) -> String {
        let status = error.status();
        assert_eq!(status["code"], 429);
        assert_eq!(status["details"]["causes"][0]["reason"], "DisruptionBudget");
        let message = &status["details"]["causes"][0]["message"];
        message.as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn what_is_spent_is_noted() {
        let one = web(json!({"observedGeneration": 1, "disruptionsAllowed": 1}));
        let status = spend(&one, "a", at(7)).expect("spent");
        assert_eq!(status.disruptions_allowed, 0);
        assert_eq!(
            status.disrupted_pods,
            Some([("a".to_owned(), Time(at(7)))].into())
        );
        let condition = &status.conditions.as_deref().expect("a condition")[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "InsufficientPods")
        );
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let refuse = |status: Value| spend(&web(status), "a", at(0)).expect_err("refused");
        let unseen = refuse(json!({"disruptionsAllowed": 1}));
        assert_eq!(unseen.retry_after, Some(10));
        assert_eq!(
            cause(&unseen),
            "The disruption budget web is still being processed by the server."
        );
        let few =
            refuse(json!({"observedGeneration": 1, "desiredHealthy": 2, "currentHealthy": 2}));
        assert_eq!(few.retry_after, None);
        assert_eq!(
            cause(&few),
            "The disruption budget web needs 2 healthy pods and has 2 currently"
        );
        let mut unknown = web(json!({"observedGeneration": 1}));
        tell_failure(unknown.status.get_or_insert_default(), "no idea", at(0));
        assert_eq!(
            cause(&spend(&unknown, "a", at(0)).expect_err("refused")),
            "The disruption budget web does not allow evicting pods currently because it failed sync: no idea"
        );
        let negative = refuse(json!({"observedGeneration": 1, "disruptionsAllowed": -1}));
        assert_eq!(
            negative.message,
            "poddisruptionbudget.policy \"web\" is forbidden: pdb disruptions allowed is negative"
        );
    }
}
