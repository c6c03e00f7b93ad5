//! VolumeAttributesClass: what of a volume may be changed while it is used, and to what.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    storageclass::{parameters, provisioner},
    validate::{Path, immutable},
};

impl Strategy for VolumeAttributesClass {
    const SINGULAR: &'static str = "volumeattributesclass";
    const SHORT_NAMES: &'static [&'static str] = &["vac"];
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("DriverName", "Who changes the volumes."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(self.driver_name),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let (driver, path) = (Path::new("driverName"), Path::new("parameters"));
        let mut errors = provisioner(&driver, &self.driver_name);
        if self.parameters.iter().flatten().next().is_none() {
            errors.push(path.required("must contain at least one key/value pair"));
        }
        errors.extend(parameters(&path, self.parameters.as_ref()));
        if let Some(old) = old {
            errors.extend(immutable(&driver, &self.driver_name, &old.driver_name));
            errors.extend(immutable(&path, &self.parameters, &old.parameters));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_parameters_and_keeps_them() {
        let class =
            |value: Value| -> VolumeAttributesClass { serde_json::from_value(value).unwrap() };
        let errors = |new: Value, old: Option<Value>| -> Vec<String> {
            let errors = Strategy::validate(&class(new), old.map(class).as_ref());
            errors.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            errors(json!({"driverName": "example.com"}), None),
            ["parameters: Required value: must contain at least one key/value pair"]
        );
        let slow = json!({"driverName": "example.com", "parameters": {"iops": "1"}});
        let fast = json!({"driverName": "example.com", "parameters": {"iops": "9"}});
        assert!(errors(slow.clone(), Some(slow.clone())).is_empty());
        assert_eq!(
            errors(fast, Some(slow)),
            ["parameters: Invalid value: {\"iops\":\"9\"}: field is immutable"]
        );
    }
}
