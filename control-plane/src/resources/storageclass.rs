//! StorageClass: how volumes of a kind are made.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    validate::{Path, immutable, labels, names, one_of},
};

/// Marks the class that claims get which name none.
pub const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const OLDER_DEFAULT: &str = "storageclass.beta.kubernetes.io/is-default-class";
pub(super) const RECLAIM_POLICIES: &[&str] = &["Delete", "Retain"];
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];
const MAX_PARAMETERS: usize = 512;
const MAX_SIZE: usize = 256 * 1024;

/// Whether claims get this class which name none.
pub fn is_default(class: &StorageClass) -> bool {
    let annotations = class.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| matches!(key.as_str(), DEFAULT | OLDER_DEFAULT))
        .any(|(_, value)| value == "true")
}

impl Strategy for StorageClass {
    const SINGULAR: &'static str = "storageclass";
    const SHORT_NAMES: &'static [&'static str] = &["sc"];
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Provisioner", "Who makes the volumes."),
        Column::text(
            "ReclaimPolicy",
            "What becomes of a volume that nobody claims any more.",
        ),
        Column::text("VolumeBindingMode", "When a claim gets its volume."),
        Column::text("AllowVolumeExpansion", "Whether claims may grow."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let mut name = print::name(&self.metadata);
        if is_default(self) {
            name.push_str(" (default)");
        }
        vec![
            json!(name),
            json!(self.provisioner),
            json!(self.reclaim_policy.as_deref().unwrap_or("Delete")),
            json!(self.volume_binding_mode.as_deref().unwrap_or("Immediate")),
            json!(self.allow_volume_expansion.unwrap_or_default()),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        self.reclaim_policy
            .get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode
            .get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = provisioner(&Path::new("provisioner"), &self.provisioner);
        errors.extend(parameters(
            &Path::new("parameters"),
            self.parameters.as_ref(),
        ));
        errors.extend(one_of(
            &Path::new("reclaimPolicy"),
            self.reclaim_policy.as_deref(),
            RECLAIM_POLICIES,
        ));
        errors.extend(one_of(
            &Path::new("volumeBindingMode"),
            self.volume_binding_mode.as_deref(),
            BINDING_MODES,
        ));
        errors.extend(topologies(self));
        if let Some(old) = old {
            for (field, changed) in [
                ("parameters", self.parameters != old.parameters),
                ("provisioner", self.provisioner != old.provisioner),
                ("reclaimPolicy", self.reclaim_policy != old.reclaim_policy),
            ] {
                if changed {
                    let why = format!("updates to {field} are forbidden.");
                    errors.push(Path::new(field).forbidden(why));
                }
            }
            errors.extend(immutable(
                &Path::new("volumeBindingMode"),
                &self.volume_binding_mode,
                &old.volume_binding_mode,
            ));
        }
        errors
    }
}

/// What is wrong with the name of who makes or attaches volumes.
pub(super) fn provisioner(path: &Path, name: &str) -> Vec<FieldError> {
    match name {
        "" => vec![path.required("")],
        name => path.invalid_all(name, names::qualified(&name.to_lowercase())),
    }
}

/// What is wrong with what a class tells the driver of its volumes.
pub(super) fn parameters(
    path: &Path,
    parameters: Option<&BTreeMap<String, String>>,
) -> Vec<FieldError> {
    if parameters.map_or(0, BTreeMap::len) > MAX_PARAMETERS {
        return vec![path.too_long(MAX_PARAMETERS)];
    }
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in parameters.into_iter().flatten() {
        if key.is_empty() {
            errors.push(path.invalid("", "field can not be empty."));
        }
        size += key.len() + value.len();
    }
    if size > MAX_SIZE {
        errors.push(path.too_long(MAX_SIZE));
    }
    errors
}

fn topologies(class: &StorageClass) -> Vec<FieldError> {
    let path = Path::new("allowedTopologies");
    let mut errors = Vec::new();
    for (index, term) in class.allowed_topologies.iter().flatten().enumerate() {
        let path = path.index(index).child("matchLabelExpressions");
        let mut seen = Vec::new();
        for (index, one) in term.match_label_expressions.iter().flatten().enumerate() {
            let path = path.index(index);
            if seen.contains(&&one.key) {
                errors.push(path.child("key").duplicate(one.key.as_str()));
            }
            seen.push(&one.key);
            errors.extend(labels::key(&path.child("key"), &one.key));
            if one.values.is_empty() {
                errors.push(path.child("values").required(""));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(value: Value) -> StorageClass {
        let mut class: StorageClass = serde_json::from_value(value).unwrap();
        class.set_defaults();
        class
    }

    fn errors(new: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(class);
        let errors = Strategy::validate(&class(new), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_class_says_who_makes_its_volumes() {
        assert_eq!(errors(json!({}), None), ["provisioner: Required value"]);
        assert_eq!(
            errors(
                json!({"provisioner": "example.com/nfs", "reclaimPolicy": "Recycle", "allowedTopologies": [
                    {"matchLabelExpressions": [{"key": "zone", "values": ["a"]}, {"key": "zone"}]},
                ]}),
                None
            ),
            [
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"zone\"",
                "allowedTopologies[0].matchLabelExpressions[1].values: Required value",
            ]
        );
    }

    #[test]
    fn a_class_stays_what_it_is() {
        let old = json!({"provisioner": "a"});
        let new = json!({
            "provisioner": "b", "parameters": {"k": "v"}, "reclaimPolicy": "Retain",
            "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
        });
        assert_eq!(
            errors(new, Some(old)),
            [
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ]
        );
    }

    #[test]
    fn the_default_class_is_marked() {
        let class = class(json!({
            "metadata": {"name": "fast", "annotations": {DEFAULT: "true"}}, "provisioner": "a",
        }));
        assert_eq!(
            class.row(0),
            [
                json!("fast (default)"),
                json!("a"),
                json!("Delete"),
                json!("Immediate"),
                json!(false),
                json!("<unknown>")
            ]
        );
    }
}
