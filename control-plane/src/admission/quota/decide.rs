//! Whether a quota has room for a request, and what it has used afterwards. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceQuota, ResourceQuotaSpec};
use serde::Deserialize;
use serde_json::Value;

use crate::resources::Kind;
use crate::resources::pod::whole;
use crate::resources::quantity::{self, Quantity, Sums};
use crate::resources::resourcequota::{scopes, usage};

/// A write, as a quota sees it.
pub(super) struct Change<'a> {
    pub(super) kind: &'static Kind,
    pub(super) new: &'a Value,
    /// The present state for an update.
    pub(super) old: Option<&'a Value>,
    /// Seconds since the Unix epoch.
    pub(super) now: i64,
}

/// What a quota has used once the change is made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Charge {
    pub(super) used: Sums,
}

/// What each container of a pod has to say something of, where a quota counts it.
const EXPLICIT: [&str; 6] = [
    "cpu",
    "memory",
    "requests.cpu",
    "requests.memory",
    "limits.cpu",
    "limits.memory",
];

/// None: the change costs the quota nothing. An error says why there is no room, in upstream's words.
pub(super) fn charge(quota: &ResourceQuota, change: &Change<'_>) -> Result<Option<Charge>, String> {
    let spec = quota.spec.clone().unwrap_or_default();
    let status = quota.status.clone().unwrap_or_default();
    let name = quota.metadata.name.as_deref().unwrap_or_default();
    // As upstream, a quota counts from when its controller has looked at it: only then somebody knows what is used.
    let hard = quantity::sums(status.hard.as_ref());
    let concerned: BTreeSet<&String> = hard
        .keys()
        .filter(|name| usage::concerns(change.kind, name))
        .collect();
    if concerned.is_empty() || !is_in_scope(&spec, change.kind, change.new) {
        return Ok(None);
    }
    if let Some(missing) = unsaid(change, &concerned) {
        return Err(format!("failed quota: {name}: must specify {missing}"));
    }
    let used = quantity::sums(status.used.as_ref());
    if concerned.iter().any(|name| !used.contains_key(*name)) {
        let names: Vec<&str> = concerned.iter().map(|name| name.as_str()).collect();
        return Err(format!(
            "status unknown for quota: {name}, resources: {}",
            names.join(",")
        ));
    }
    let mut added = usage::of(change.kind, change.new, change.now);
    if let Some(old) = change.old
        && is_in_scope(&spec, change.kind, old)
    {
        let before = usage::of(change.kind, old, change.now);
        for (name, amount) in &mut added {
            let less = before.get(name).copied().unwrap_or(Quantity::count(0));
            *amount = amount.minus(less).max(Quantity::count(0));
        }
    }
    added.retain(|name, amount| concerned.contains(name) && !amount.is_zero());
    if added.is_empty() {
        return Ok(None);
    }
    let mut after = used.clone();
    quantity::add(&mut after, &added);
    let exceeded = |name: &&String| after.get(*name) > hard.get(*name);
    let exceeded: BTreeSet<&String> = added.keys().filter(exceeded).collect();
    if exceeded.is_empty() {
        return Ok(Some(Charge { used: after }));
    }
    let shown = |sums: &Sums| {
        let parts = sums.iter().filter(|(name, _)| exceeded.contains(name));
        let parts: Vec<_> = parts.map(|(name, sum)| format!("{name}={sum}")).collect();
        parts.join(",")
    };
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        shown(&added),
        shown(&used),
        shown(&hard)
    ))
}

/// Scopes are about pods: a quota that has some counts nothing else.
fn is_in_scope(spec: &ResourceQuotaSpec, kind: &Kind, object: &Value) -> bool {
    if !scopes::has_any(spec) {
        return true;
    }
    let of_pods = kind.group.is_empty() && kind.plural == "pods";
    of_pods && Pod::deserialize(object).is_ok_and(|pod| scopes::hold(spec, &pod))
}

/// What a pod's containers do not say that they have to, as `cpu for: a,b; memory for: b`.
fn unsaid(change: &Change<'_>, concerned: &BTreeSet<&String>) -> Option<String> {
    if change.kind.plural != "pods" || !change.kind.group.is_empty() {
        return None;
    }
    let spec = Pod::deserialize(change.new).ok()?.spec?;
    if whole::is_set(&spec) {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let init = spec.init_containers.iter().flatten();
    for container in spec.containers.iter().chain(init) {
        let said = said_by(container);
        for name in EXPLICIT {
            let counted = concerned.iter().any(|concerned| *concerned == name);
            if counted && !said.contains_key(name) {
                missing.entry(name).or_default().insert(&container.name);
            }
        }
    }
    let texts: Vec<String> = missing
        .into_iter()
        .map(|(name, of)| {
            let of: Vec<&str> = of.into_iter().collect();
            format!("{name} for: {}", of.join(","))
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn said_by(container: &Container) -> Sums {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    usage::of_resources(&quantity::sums(requests), &quantity::sums(limits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;
    use proptest::prelude::*;
    use serde_json::json;

    fn quota(hard: Value, used: Value) -> ResourceQuota {
        serde_json::from_value(json!({
            "metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used},
        }))
        .unwrap()
    }

    fn change<'a>(plural: &str, new: &'a Value, old: Option<&'a Value>) -> Change<'a> {
        let kind = find("", "v1", plural).unwrap();
        Change {
            kind,
            new,
            old,
            now: 0,
        }
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn used(charge: Option<Charge>) -> Value {
        json!(charge.map(|charge| quantity::written(&charge.used)))
    }

    #[test]
    fn what_fits_is_charged() {
        let quota = quota(
            json!({"pods": "2", "requests.cpu": "1", "services": "1"}),
            json!({"pods": "1", "requests.cpu": "300m", "services": "0"}),
        );
        let pod = pod("500m");
        let charge = charge(&quota, &change("pods", &pod, None)).unwrap();
        assert_eq!(
            used(charge),
            json!({"pods": "2", "requests.cpu": "800m", "services": "0"})
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_in_upstreams_words() {
        let quota = quota(
            json!({"pods": "5", "requests.cpu": "1"}),
            json!({"pods": "1", "requests.cpu": "800m"}),
        );
        let pod = pod("500m");
        assert_eq!(
            charge(&quota, &change("pods", &pod, None)),
            Err("exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=800m, limited: requests.cpu=1".into())
        );
    }

    #[test]
    fn what_is_counted_must_be_said() {
        let quota = quota(
            json!({"requests.cpu": "1", "limits.memory": "1Gi"}),
            json!({"requests.cpu": "0", "limits.memory": "0"}),
        );
        let silent = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}});
        assert_eq!(
            charge(&quota, &change("pods", &silent, None)),
            Err(
                "failed quota: q: must specify limits.memory for: a,b; requests.cpu for: a,b"
                    .into()
            )
        );
    }

    #[test]
    fn nothing_is_made_before_usage_is_known() {
        let quota = quota(json!({"pods": "1"}), json!({}));
        let pod = pod("1");
        assert_eq!(
            charge(&quota, &change("pods", &pod, None)),
            Err("status unknown for quota: q, resources: pods".into())
        );
        let map = json!({});
        assert_eq!(charge(&quota, &change("configmaps", &map, None)), Ok(None));
    }

    #[test]
    fn an_update_is_charged_what_it_adds() {
        let quota = quota(
            json!({"services.nodeports": "2"}),
            json!({"services.nodeports": "1"}),
        );
        let service = |kind: &str, ports: usize| {
            let ports: Vec<_> = (1..=ports).map(|port| json!({"port": port})).collect();
            json!({"spec": {"type": kind, "ports": ports}})
        };
        let (one, two) = (service("NodePort", 1), service("NodePort", 2));
        let charged = charge(&quota, &change("services", &two, Some(&one))).unwrap();
        assert_eq!(used(charged), json!({"services.nodeports": "2"}));
        assert_eq!(
            charge(&quota, &change("services", &one, Some(&two))),
            Ok(None)
        );
        let three = service("NodePort", 3);
        let refused = charge(&quota, &change("services", &three, Some(&one))).unwrap_err();
        assert!(refused.starts_with("exceeded quota: q, requested: services.nodeports=2"));
    }

    #[test]
    fn a_scoped_quota_counts_the_pods_in_its_scope() {
        let mut quota = quota(json!({"pods": "0"}), json!({"pods": "0"}));
        quota.spec.as_mut().unwrap().scopes = Some(vec!["BestEffort".into()]);
        let (firm, loose) = (pod("1"), json!({"spec": {"containers": [{"name": "a"}]}}));
        assert_eq!(charge(&quota, &change("pods", &firm, None)), Ok(None));
        assert!(charge(&quota, &change("pods", &loose, None)).is_err());
    }

    proptest! {
        /// However pods come, no more is used than there may be.
        #[test]
        fn a_quota_is_never_exceeded(asked in prop::collection::vec(0_u32..800, 0..20), most in 0_u32..3000) {
            let hard = json!({"requests.cpu": format!("{most}m")});
            let mut quota = quota(hard, json!({"requests.cpu": "0"}));
            let mut total = 0;
            for milli in asked {
                let pod = pod(&format!("{milli}m"));
                match charge(&quota, &change("pods", &pod, None)) {
                    Ok(charge) => {
                        total += milli;
                        if let Some(Charge { used }) = charge {
                            quota.status.as_mut().unwrap().used = Some(quantity::written(&used));
                        }
                    }
                    Err(_) => prop_assert!(total + milli > most),
                }
                prop_assert!(total <= most);
            }
            let used = quota.status.unwrap().used.unwrap()["requests.cpu"].0.clone();
            prop_assert_eq!(used.parse::<Quantity>().unwrap().ceil_milli(), i64::from(total));
        }
    }
}
