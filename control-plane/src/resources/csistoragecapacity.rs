//! CSIStorageCapacity: how much room a driver has for volumes of a class, where.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, print,
    quantity::{self, Quantity},
    validate::{Path, immutable, labels, names},
};

impl Strategy for CSIStorageCapacity {
    const SINGULAR: &'static str = "csistoragecapacity";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("StorageClassName", "The class of the volumes."),
        Column::text("Capacity", "How much room there is."),
    ];

    fn row(&self, _now: i64) -> Vec<Value> {
        let capacity = self.capacity.as_ref();
        vec![
            json!(print::name(&self.metadata)),
            json!(self.storage_class_name),
            json!(capacity.map_or("<unset>", |capacity| capacity.0.as_str())),
        ]
    }

    fn set_defaults(&mut self) {
        let amounts = [&mut self.capacity, &mut self.maximum_volume_size];
        let amounts = amounts.into_iter().flatten();
        amounts.for_each(quantity::canonicalize_one);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let topology = Path::new("nodeTopology");
        let class = Path::new("storageClassName");
        let mut errors = Vec::new();
        if let Some(selector) = &self.node_topology {
            errors.extend(labels::selector(&topology, selector));
        }
        match self.storage_class_name.as_str() {
            "" => errors.push(class.required("")),
            name => errors.extend(class.invalid_all(name, names::dns1123_subdomain(name, false))),
        }
        errors.extend(amount(&Path::new("capacity"), self.capacity.as_ref()));
        let most = Path::new("maximumVolumeSize");
        errors.extend(amount(&most, self.maximum_volume_size.as_ref()));
        if let Some(old) = old {
            errors.extend(immutable(
                &topology,
                &self.node_topology,
                &old.node_topology,
            ));
            errors.extend(immutable(
                &class,
                &self.storage_class_name,
                &old.storage_class_name,
            ));
        }
        errors
    }
}

fn amount(path: &Path, amount: Option<&Written>) -> Option<FieldError> {
    let text = amount?.0.as_str();
    match text.parse::<Quantity>() {
        Err(error) => Some(path.invalid(text, error.to_string())),
        Ok(amount) if amount.is_negative() => {
            Some(path.invalid(text, "must be greater than or equal to 0"))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_is_of_one_class_at_one_place() {
        let capacity =
            |value: Value| -> CSIStorageCapacity { serde_json::from_value(value).unwrap() };
        let old = capacity(json!({"storageClassName": "a"}));
        let new = capacity(json!({"storageClassName": "b", "capacity": "-1", "nodeTopology": {}}));
        let errors = Strategy::validate(&new, Some(&old));
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "capacity: Invalid value: \"-1\": must be greater than or equal to 0",
                "nodeTopology: Invalid value: {}: field is immutable",
                "storageClassName: Invalid value: \"b\": field is immutable",
            ]
        );
    }
}
