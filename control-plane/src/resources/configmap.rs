//! ConfigMap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    validate::{self, Path, names},
};

/// What one ConfigMap or Secret may hold.
pub(super) const MAX_SIZE: usize = 1024 * 1024;

impl Strategy for ConfigMap {
    const SINGULAR: &'static str = "configmap";
    const SHORT_NAMES: &'static [&'static str] = &["cm"];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Data", "How many entries there are."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let entries = count(self.data.as_ref()) + count(self.binary_data.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(entries),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let mut errors = Vec::new();
        let mut size = 0;
        for (key, value) in self.data.iter().flatten() {
            errors.extend(data.key(key).invalid_all(key, names::config_key(key)));
            if self
                .binary_data
                .as_ref()
                .is_some_and(|binary| binary.contains_key(key))
            {
                errors.push(
                    data.key(key)
                        .invalid(key.as_str(), "duplicate of key present in binaryData"),
                );
            }
            size += value.len();
        }
        for (key, value) in self.binary_data.iter().flatten() {
            errors.extend(binary.key(key).invalid_all(key, names::config_key(key)));
            size += value.0.len();
        }
        if size > MAX_SIZE {
            errors.push(Path::root().key("").too_long(MAX_SIZE));
        }
        if let Some(old) = old.filter(|old| old.immutable == Some(true)) {
            errors.extend(frozen("immutable", self.immutable != Some(true)));
            errors.extend(frozen("data", self.data != old.data));
            errors.extend(frozen("binaryData", self.binary_data != old.binary_data));
        }
        errors
    }
}

/// How many entries a map has.
pub(super) fn count<V>(map: Option<&BTreeMap<String, V>>) -> usize {
    map.map_or(0, BTreeMap::len)
}

/// The error for a field that changed although the object says that it is immutable.
pub(super) fn frozen(field: &str, changed: bool) -> Option<FieldError> {
    changed.then(|| {
        Path::new(field).forbidden(format!(
            "{} when `immutable` is set",
            validate::FIELD_IS_IMMUTABLE
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(new: Value, old: Option<Value>) -> Vec<String> {
        let typed = |value: Value| serde_json::from_value::<ConfigMap>(value).unwrap();
        let (new, old) = (typed(new), old.map(typed));
        Strategy::validate(&new, old.as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn keys_are_file_names() {
        assert!(errors(json!({ "data": { "app.properties": "" } }), None).is_empty());
        assert_eq!(
            errors(json!({ "data": { "a/b": "" } }), None),
            [
                "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            ]
        );
    }

    #[test]
    fn an_immutable_one_keeps_its_data() {
        assert_eq!(
            errors(
                json!({ "immutable": true, "data": { "a": "2" } }),
                Some(json!({ "immutable": true, "data": { "a": "1" } }))
            ),
            ["data: Forbidden: field is immutable when `immutable` is set"]
        );
    }
}
