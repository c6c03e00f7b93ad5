//! Priority: what a pod's PriorityClass says, written into the pod. One class at most is the default, and those of the
//! system stay.

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use super::lookup::Lookup;
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::resources::priorityclass::{PREEMPT, is_system};

pub(super) async fn admit(
    review: &Review<'_>,
    object: &mut Value,
    old: Option<&Value>,
    lookup: &Lookup<'_>,
) -> Result<(), ApiError> {
    if !review.subresource.is_empty() {
        return Ok(());
    }
    if review.is("scheduling.k8s.io", "priorityclasses") {
        return guard(review, object, lookup).await;
    }
    if !review.is("", "pods") || !object["spec"].is_object() {
        return Ok(());
    }
    match (review.operation, old) {
        (Operation::Create, _) => {
            let named = object["spec"]["priorityClassName"].as_str();
            let class = class_of(named.unwrap_or_default(), lookup).await?;
            let resolved = class.and_then(|class| resolve(&mut object["spec"], class.as_ref()));
            let name = meta::text(object, "name").to_owned();
            resolved.map_err(|why| ApiError::forbidden("", "pods", &name, &why))
        }
        // An update that says nothing of it keeps what was resolved.
        (Operation::Update, Some(old)) => {
            for field in ["priority", "preemptionPolicy"] {
                let was = &old["spec"][field];
                if object["spec"][field].is_null() && !was.is_null() {
                    object["spec"][field] = was.clone();
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The class that a pod names, or the default one, or why there is no such class.
async fn class_of(
    name: &str,
    lookup: &Lookup<'_>,
) -> Result<Result<Option<PriorityClass>, String>, ApiError> {
    if name.is_empty() {
        return Ok(Ok(default_of(lookup.list("").await?)));
    }
    let found = lookup.get::<PriorityClass>("", name).await?;
    Ok(match found {
        Some(class) => Ok(Some(class)),
        None => Err(format!("no PriorityClass with name {name} was found")),
    })
}

/// Of several defaults, which only a race can make, the lowest.
fn default_of(classes: Vec<PriorityClass>) -> Option<PriorityClass> {
    let defaults = classes
        .into_iter()
        .filter(|class| class.global_default == Some(true));
    defaults.min_by_key(|class| class.value)
}

/// Writes a class into a pod, or says what of the pod contradicts it.
fn resolve(spec: &mut Value, class: Option<&PriorityClass>) -> Result<(), String> {
    let value = class.map_or(0, |class| class.value);
    let policy = class.and_then(|class| class.preemption_policy.as_deref());
    let policy = policy.unwrap_or(PREEMPT);
    let own: PodSpec = serde_json::from_value(spec.clone()).unwrap_or_default();
    if let Some(own) = own.priority.filter(|own| *own != value) {
        return Err(format!(
            "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(own) = own.preemption_policy.filter(|own| own != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    if let Some(class) = class {
        spec["priorityClassName"] = json!(class.metadata.name);
    }
    spec["priority"] = json!(value);
    spec["preemptionPolicy"] = json!(policy);
    Ok(())
}

/// Keeps the system's classes, and a second default away.
async fn guard(review: &Review<'_>, object: &Value, lookup: &Lookup<'_>) -> Result<(), ApiError> {
    let name = meta::text(object, "name");
    let refusal = |why: &str| {
        let (group, plural) = (review.kind.group, review.kind.plural);
        Err(ApiError::forbidden(group, plural, name, why))
    };
    if review.operation == Operation::Delete {
        return match is_system(name) {
            true => refusal("this is a system priority class and cannot be deleted"),
            false => Ok(()),
        };
    }
    if object["globalDefault"] != true {
        return Ok(());
    }
    let classes: Vec<PriorityClass> = lookup.list("").await?;
    let other = classes.iter().find(|class| {
        class.global_default == Some(true) && class.metadata.name.as_deref() != Some(name)
    });
    match other.and_then(|other| other.metadata.name.as_deref()) {
        Some(other) => refusal(&format!(
            "PriorityClass {other} is already marked as default. Only one default can exist"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: i32) -> PriorityClass {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "value": value, "preemptionPolicy": "Never", "globalDefault": true,
        }))
        .unwrap()
    }

    #[test]
    fn a_class_is_written_into_the_pod() {
        let mut spec = json!({"containers": []});
        resolve(&mut spec, Some(&class("high", 7))).unwrap();
        assert_eq!(
            spec,
            json!({"containers": [], "priorityClassName": "high", "priority": 7, "preemptionPolicy": "Never"})
        );
        let once = spec.clone();
        resolve(&mut spec, Some(&class("high", 7))).unwrap();
        assert_eq!(spec, once);
        let mut plain = json!({"containers": []});
        resolve(&mut plain, None).unwrap();
        assert_eq!(
            plain,
            json!({"containers": [], "priority": 0, "preemptionPolicy": "PreemptLowerPriority"})
        );
    }

    #[test]
    fn a_pod_does_not_choose_its_number() {
        let class = class("high", 7);
        assert_eq!(
            resolve(&mut json!({"containers": [], "priority": 8}), Some(&class)),
            Err("the integer value of priority (8) must not be provided in pod spec; priority admission controller computed 7 from the given PriorityClass name".into())
        );
        let eager = json!({"containers": [], "preemptionPolicy": "PreemptLowerPriority"});
        let refused = resolve(&mut eager.clone(), Some(&class)).unwrap_err();
        assert!(refused.starts_with("the string value of PreemptionPolicy (PreemptLowerPriority)"));
    }

    #[test]
    fn of_several_defaults_the_lowest_counts() {
        let found = default_of(vec![class("a", 9), class("b", 3)]).unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some("b"));
        assert_eq!(default_of(vec![]), None);
    }
}
