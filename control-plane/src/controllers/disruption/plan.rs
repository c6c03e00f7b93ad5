//! From a budget and its pods to the budget's status. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::controllers::pods::{controller_of, is_ready};
use crate::resources::poddisruptionbudget::{tell_allowance, tell_failure};

/// A pod whose eviction was allowed counts as gone for so long; if it is still there then, it stays.
pub(super) const EVICTION: Duration = Duration::from_secs(120);

/// What wants some pods: its uid, and how many.
pub(super) type Scale = (String, i32);

#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) status: PodDisruptionBudgetStatus,
    /// When an eviction that came to nothing is forgotten.
    pub(super) look_again: Option<Duration>,
    /// Pods that were to be evicted and are still there.
    pub(super) stayed: Vec<Arc<Pod>>,
    /// Pods that nothing manages, where it matters how many are wanted.
    pub(super) unmanaged: bool,
    /// Why the status says that nothing may go.
    pub(super) failure: Option<String>,
}

/// How many pods there should be, and how many of them have to be healthy.
struct Wanted {
    pods: i32,
    healthy: i32,
    unmanaged: bool,
}

/// `pods` are those that the budget's selector selects; `scale_of` says what wants the pods that an owner manages.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale_of: impl Fn(&OwnerReference) -> Option<Scale>,
    now: Timestamp,
) -> Plan {
    let spec = budget.spec.clone().unwrap_or_default();
    let mut plan = Plan {
        status: budget.status.clone().unwrap_or_default(),
        look_again: None,
        stayed: Vec::new(),
        unmanaged: false,
        failure: None,
    };
    let status = &mut plan.status;
    status.observed_generation = budget.metadata.generation;
    let wanted = match wanted(&spec, pods, scale_of) {
        Ok(wanted) => wanted,
        Err(why) => {
            tell_failure(status, &why, now);
            plan.failure = Some(why);
            return plan;
        }
    };
    plan.unmanaged = wanted.unmanaged;
    let known = status.disrupted_pods.take().unwrap_or_default();
    let mut going: BTreeMap<String, Time> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_here(pod)) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let Some(since) = known.get(name) else {
            continue;
        };
        match left(since, now) {
            None => plan.stayed.push(pod.clone()),
            Some(left) => {
                plan.look_again = Some(plan.look_again.map_or(left, |next| next.min(left)));
                going.insert(name.to_owned(), since.clone());
            }
        }
    }
    let is_going = |pod: &Pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        going.contains_key(name)
    };
    let healthy = pods
        .iter()
        .filter(|pod| is_here(pod) && !is_going(pod) && is_ready(pod));
    status.current_healthy = count(healthy.count());
    status.desired_healthy = wanted.healthy;
    status.expected_pods = wanted.pods;
    // Of a budget whose pods are not there yet nothing may go: the first ones come before this is looked at again.
    status.disruptions_allowed = match wanted.pods {
        ..=0 => 0,
        _ => (status.current_healthy - wanted.healthy).max(0),
    };
    status.disrupted_pods = (!going.is_empty()).then_some(going);
    tell_allowance(status, now);
    plan
}

fn is_here(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

/// How long an eviction allowed at `since` still counts; None when no longer.
fn left(since: &Time, now: Timestamp) -> Option<Duration> {
    let passed = Duration::try_from(now.duration_since(since.0)).unwrap_or_default();
    // A moment more, so that the next look finds it over.
    let left = (EVICTION + Duration::from_secs(1)).checked_sub(passed)?;
    (passed <= EVICTION).then_some(left)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn wanted(
    spec: &PodDisruptionBudgetSpec,
    pods: &[Arc<Pod>],
    scale_of: impl Fn(&OwnerReference) -> Option<Scale>,
) -> Result<Wanted, String> {
    let (amount, may_be_away) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(amount), _) => (amount, true),
        (None, Some(IntOrString::Int(healthy))) => {
            return Ok(Wanted {
                pods: count(pods.len()),
                healthy: *healthy,
                unmanaged: false,
            });
        }
        (None, Some(amount)) => (amount, false),
        (None, None) => {
            return Ok(Wanted {
                pods: 0,
                healthy: 0,
                unmanaged: false,
            });
        }
    };
    let mut scales: BTreeMap<String, i32> = BTreeMap::new();
    let mut unmanaged = false;
    for pod in pods {
        match controller_of(&pod.metadata) {
            None => unmanaged = true,
            Some(owner) => {
                let (uid, replicas) = scale_of(owner).ok_or_else(|| {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    format!("found no controllers for pod {name:?}")
                })?;
                scales.insert(uid, replicas);
            }
        }
    }
    let total = scales
        .values()
        .fold(0_i32, |sum, one| sum.saturating_add(*one));
    let number = of(amount, total).ok_or("invalid value for IntOrString: invalid percentage")?;
    Ok(Wanted {
        pods: total,
        healthy: match may_be_away {
            true => total.saturating_sub(number).max(0),
            false => number,
        },
        unmanaged,
    })
}

/// An amount as a number; a share of `total` is rounded up.
fn of(amount: &IntOrString, total: i32) -> Option<i32> {
    match amount {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let share = percent.checked_mul(total.into())?;
            i32::try_from(share.div_euclid(100) + i64::from(share.rem_euclid(100) != 0)).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::controllers::testing::{at, pod};

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "generation": 3}, "spec": spec, "status": status}),
        )
        .unwrap()
    }

    fn pods(ready: usize, sick: usize) -> Vec<Arc<Pod>> {
        let one = |index: usize| {
            let pod = pod(&format!("p{index}")).owner("ReplicaSet", "web", "u");
            let pod = if index < ready { pod.ready_at(0) } else { pod };
            Arc::new(pod.build())
        };
        (0..ready + sick).map(one).collect()
    }

    fn four(_: &OwnerReference) -> Option<Scale> {
        Some(("u".into(), 4))
    }

    fn numbers(plan: &Plan) -> (i32, i32, i32, i32) {
        let status = &plan.status;
        (
            status.expected_pods,
            status.current_healthy,
            status.desired_healthy,
            status.disruptions_allowed,
        )
    }

    #[test]
    fn a_budget_counts_in_several_ways() {
        for (spec, expected) in [
            (json!({"minAvailable": 2}), (3, 3, 2, 1)),
            (json!({"minAvailable": "50%"}), (4, 3, 2, 1)),
            (json!({"maxUnavailable": 1}), (4, 3, 3, 0)),
            (json!({"maxUnavailable": "30%"}), (4, 3, 2, 1)),
            (json!({"maxUnavailable": 9}), (4, 3, 0, 3)),
            (json!({}), (0, 3, 0, 0)),
        ] {
            let plan = plan(&budget(spec.clone(), Value::Null), &pods(3, 0), four, at(0));
            assert_eq!(numbers(&plan), expected, "{spec}");
            assert_eq!(plan.status.observed_generation, Some(3));
        }
    }

    #[test]
    fn what_is_not_ready_or_goes_is_not_healthy() {
        let mut pods = pods(3, 1);
        Arc::make_mut(&mut pods[0]).metadata.deletion_timestamp = Some(Time(at(0)));
        let plan = plan(
            &budget(json!({"minAvailable": 1}), Value::Null),
            &pods,
            four,
            at(0),
        );
        assert_eq!(numbers(&plan), (4, 2, 1, 1));
        let condition = &plan.status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (&*condition.type_, &*condition.status, &*condition.reason),
            ("DisruptionAllowed", "True", "SufficientPods")
        );
    }

    #[test]
    fn an_eviction_counts_until_it_is_clear_that_it_came_to_nothing() {
        let status = json!({"disruptedPods": {"p0": "1970-01-01T00:00:00Z", "gone": "1970-01-01T00:00:00Z"}});
        let budget = budget(json!({"minAvailable": 1}), status);
        let early = plan(&budget, &pods(2, 0), four, at(20));
        assert_eq!(numbers(&early), (2, 1, 1, 0));
        assert_eq!(early.look_again, Some(Duration::from_secs(101)));
        assert_eq!(
            early.status.disrupted_pods,
            Some([("p0".to_owned(), Time(at(0)))].into())
        );
        let late = plan(&budget, &pods(2, 0), four, at(121));
        assert_eq!(numbers(&late), (2, 2, 1, 1));
        assert_eq!((late.stayed.len(), late.look_again), (1, None));
        assert_eq!(late.status.disrupted_pods, None);
    }

    #[test]
    fn without_knowing_how_many_are_wanted_none_may_go() {
        let spec = json!({"maxUnavailable": 1});
        let before = json!({"disruptionsAllowed": 2, "expectedPods": 4});
        let plan = plan(&budget(spec.clone(), before), &pods(3, 0), |_| None, at(0));
        assert_eq!(
            plan.failure.as_deref(),
            Some("found no controllers for pod \"p0\"")
        );
        assert_eq!(plan.status.disruptions_allowed, 0);
        let condition = &plan.status.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (&*condition.status, &*condition.reason, &*condition.message),
            ("False", "SyncFailed", "found no controllers for pod \"p0\"")
        );
        let alone = vec![Arc::new(pod("a").ready_at(0).build())];
        let plan = super::plan(&budget(spec, Value::Null), &alone, four, at(0));
        assert!(plan.unmanaged);
        assert_eq!(numbers(&plan), (0, 1, 0, 0));
    }

    proptest! {
        #[test]
        fn no_more_may_go_than_are_healthy_beyond_what_is_needed(ready in 0_usize..6, sick in 0_usize..6, least in 0_i32..8) {
            let plan = plan(&budget(json!({"minAvailable": least}), Value::Null), &pods(ready, sick), four, at(0));
            let (_, healthy, desired, allowed) = numbers(&plan);
            prop_assert!(allowed >= 0);
            prop_assert!(allowed == 0 || healthy - allowed >= desired);
            prop_assert_eq!(allowed > 0, ready as i64 > i64::from(least));
        }

        #[test]
        fn a_plan_carried_out_is_a_plan_fulfilled(ready in 0_usize..6, share in 0_u8..101) {
            let mut budget = budget(json!({"maxUnavailable": format!("{share}%")}), Value::Null);
            budget.status = Some(plan(&budget, &pods(ready, 1), four, at(0)).status);
            let again = plan(&budget, &pods(ready, 1), four, at(5)).status;
            prop_assert_eq!(Some(again), budget.status);
        }
    }
}
