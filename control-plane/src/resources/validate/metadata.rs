//! `metadata`: the same rules for every kind, apart from what its names look like.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{FieldError, NameRule, Path, immutable, labels, names, not_negative};

pub fn object(
    new: &ObjectMeta,
    old: Option<&ObjectMeta>,
    namespaced: bool,
    name_rule: NameRule,
) -> Vec<FieldError> {
    let path = Path::new("metadata");
    let mut errors = Vec::new();
    let text = |field: &Option<String>| field.clone().unwrap_or_default();

    let prefix = text(&new.generate_name);
    if !prefix.is_empty() {
        errors.extend(
            path.child("generateName")
                .invalid_all(&prefix, name_rule(&prefix, true)),
        );
    }
    let name = text(&new.name);
    match name.is_empty() {
        true => errors.push(
            path.child("name")
                .required("name or generateName is required"),
        ),
        false => errors.extend(
            path.child("name")
                .invalid_all(&name, name_rule(&name, false)),
        ),
    }
    let namespace = text(&new.namespace);
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(path.child("namespace").required("")),
        (true, false) => {
            errors.extend(
                path.child("namespace")
                    .invalid_all(&namespace, names::dns1123_label(&namespace, false)),
            );
        }
        (false, false) => errors.push(
            path.child("namespace")
                .forbidden("not allowed on this type"),
        ),
        (false, true) => {}
    }
    errors.extend(not_negative(
        &path.child("generation"),
        new.generation.unwrap_or_default(),
    ));
    errors.extend(labels::labels(&path.child("labels"), new.labels.as_ref()));
    errors.extend(labels::annotations(
        &path.child("annotations"),
        new.annotations.as_ref(),
    ));
    errors.extend(owners(
        &path.child("ownerReferences"),
        new.owner_references.as_deref().unwrap_or_default(),
    ));
    errors.extend(finalizers(
        &path.child("finalizers"),
        new.finalizers.as_deref().unwrap_or_default(),
    ));
    if let Some(old) = old {
        errors.extend(update(&path, new, old));
    }
    errors
}

fn owners(path: &Path, owners: &[OwnerReference]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, owner) in owners.iter().enumerate() {
        let path = path.index(index);
        if owner.api_version.is_empty() {
            errors.push(
                path.child("apiVersion")
                    .invalid("", "version must not be empty"),
            );
        }
        for (field, value) in [
            ("kind", &owner.kind),
            ("name", &owner.name),
            ("uid", &owner.uid),
        ] {
            if value.is_empty() {
                errors.push(path.child(field).invalid("", "must not be empty"));
            }
        }
    }
    let mut controllers = owners.iter().filter(|owner| owner.controller == Some(true));
    if let (Some(first), Some(second)) = (controllers.next(), controllers.next()) {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
            first.kind, first.name, second.kind, second.name
        );
        errors.push(path.invalid(serde_json::to_value(owners).unwrap_or_default(), detail));
    }
    errors
}

fn finalizers(path: &Path, finalizers: &[String]) -> Vec<FieldError> {
    let mut errors: Vec<_> = finalizers
        .iter()
        .flat_map(|name| path.invalid_all(name, names::qualified(name)))
        .collect();
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(path.invalid(
            finalizers,
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
    errors
}

fn update(path: &Path, new: &ObjectMeta, old: &ObjectMeta) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old.deletion_timestamp.is_some() {
        let known = old.finalizers.as_deref().unwrap_or_default();
        let added: Vec<_> = new
            .finalizers
            .iter()
            .flatten()
            .filter(|name| !known.contains(name))
            .collect();
        if !added.is_empty() {
            errors.push(path.child("finalizers").forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            )));
        }
    }
    errors.extend(immutable(&path.child("name"), &new.name, &old.name));
    errors.extend(immutable(
        &path.child("namespace"),
        &new.namespace,
        &old.namespace,
    ));
    errors.extend(immutable(&path.child("uid"), &new.uid, &old.uid));
    errors.extend(immutable(
        &path.child("creationTimestamp"),
        &new.creation_timestamp,
        &old.creation_timestamp,
    ));
    errors.extend(immutable(
        &path.child("deletionTimestamp"),
        &new.deletion_timestamp,
        &old.deletion_timestamp,
    ));
    if new.generation < old.generation {
        errors.push(
            path.child("generation")
                .invalid(new.generation, "must not be decremented"),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn errors(new: Value, old: Option<Value>) -> Vec<String> {
        let typed = |value: Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let (new, old) = (typed(new), old.map(typed));
        object(&new, old.as_ref(), true, names::dns1123_subdomain)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_plain_object_is_fine() {
        assert!(
            errors(
                json!({ "name": "web", "namespace": "default", "labels": { "app": "" } }),
                None
            )
            .is_empty()
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let found = errors(
            json!({
                "namespace": "default",
                "labels": { "a": "b c" },
                "finalizers": ["orphan", "foregroundDeletion"],
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "", "uid": "1" }],
            }),
            None,
        );
        assert_eq!(
            found[0],
            "metadata.name: Required value: name or generateName is required"
        );
        assert!(
            found[1].starts_with("metadata.labels: Invalid value: \"b c\": a valid label must be")
        );
        assert_eq!(
            found[2],
            "metadata.ownerReferences[0].name: Invalid value: \"\": must not be empty"
        );
        assert!(found[3].ends_with("finalizer orphan and foregroundDeletion cannot be both set"));
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn what_identifies_an_object_stays() {
        let found = errors(
            json!({ "name": "a", "namespace": "default", "uid": "2" }),
            Some(json!({ "name": "a", "namespace": "default", "uid": "1" })),
        );
        assert_eq!(
            found,
            ["metadata.uid: Invalid value: \"2\": field is immutable"]
        );
    }

    #[test]
    fn a_dying_object_takes_no_new_finalizer() {
        let dying =
            json!({ "name": "a", "namespace": "b", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let mut new = dying.clone();
        new["finalizers"] = json!(["example.com/x"]);
        assert_eq!(
            errors(new, Some(dying)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers [\"example.com/x\"]"
            ]
        );
    }
}
