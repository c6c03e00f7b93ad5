//! The class of a new claim, or of a new Ingress, that names none: the one that is marked as the default.

use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::lookup::Lookup;
use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::resources::{ingress, ingressclass, storageclass};

/// The older way to name a storage class.
const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) async fn admit(
    review: &Review<'_>,
    object: &mut Value,
    lookup: &Lookup<'_>,
) -> Result<(), ApiError> {
    if review.operation != Operation::Create || !object["spec"].is_object() {
        return Ok(());
    }
    if review.is("", "persistentvolumeclaims") {
        let (field, annotation) = ("storageClassName", STORAGE_CLASS);
        if names_none(object, field, annotation) {
            let classes: Vec<StorageClass> = lookup.list("").await?;
            let marked = classes
                .iter()
                .filter(|class| storageclass::is_default(class));
            set(object, field, newest(marked.map(|class| &class.metadata)));
        }
    }
    if review.is("networking.k8s.io", "ingresses") {
        let (field, annotation) = ("ingressClassName", ingress::CLASS);
        if names_none(object, field, annotation) {
            let classes: Vec<IngressClass> = lookup.list("").await?;
            let marked = |class: &&IngressClass| {
                let annotations = class.metadata.annotations.as_ref();
                let mark = annotations.and_then(|all| all.get(ingressclass::DEFAULT));
                mark.is_some_and(|mark| mark == "true")
            };
            let marked = classes.iter().filter(marked);
            set(object, field, newest(marked.map(|class| &class.metadata)));
        }
    }
    Ok(())
}

/// An empty name says something: that there shall be no class.
fn names_none(object: &Value, field: &str, annotation: &str) -> bool {
    object["spec"][field].is_null() && object["metadata"]["annotations"][annotation].is_null()
}

/// Of several defaults the newest counts, as upstream.
fn newest<'a>(classes: impl Iterator<Item = &'a ObjectMeta>) -> Option<&'a str> {
    let age = |class: &&ObjectMeta| {
        let made = class.creation_timestamp.as_ref().map(|time| time.0);
        (std::cmp::Reverse(made), class.name.clone())
    };
    classes.min_by_key(age)?.name.as_deref()
}

fn set(object: &mut Value, field: &str, class: Option<&str>) {
    if let Some(class) = class {
        object["spec"][field] = json!(class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_is_a_name() {
        let object = |class: Value| json!({"metadata": {}, "spec": {"storageClassName": class}});
        let none = |object: &Value| names_none(object, "storageClassName", STORAGE_CLASS);
        assert!(none(&object(Value::Null)));
        assert!(!none(&object(json!(""))) && !none(&object(json!("fast"))));
        let mut old = object(Value::Null);
        old["metadata"] = json!({"annotations": {STORAGE_CLASS: "slow"}});
        assert!(!none(&old));
    }

    #[test]
    fn of_several_defaults_the_newest_counts() {
        let class = |name: &str, made: &str| -> ObjectMeta {
            serde_json::from_value(json!({"name": name, "creationTimestamp": made})).unwrap()
        };
        let all = [
            class("a", "2024-01-01T00:00:00Z"),
            class("c", "2025-01-01T00:00:00Z"),
            class("b", "2025-01-01T00:00:00Z"),
        ];
        assert_eq!(newest(all.iter()), Some("b"));
        assert_eq!(newest([].iter()), None);
    }
}
