//! CSINode: the storage drivers that a node has.

use std::collections::BTreeSet;

use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, csidriver, print,
    validate::{FIELD_IS_IMMUTABLE, Path, labels, not_negative},
};

const MAX_NODE_ID: usize = 192;

impl Strategy for CSINode {
    const SINGULAR: &'static str = "csinode";
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::integer("Drivers", "How many drivers the node has."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(self.spec.drivers.len()),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec").child("drivers");
        let (mut errors, mut seen) = (Vec::new(), BTreeSet::new());
        for (index, driver) in self.spec.drivers.iter().enumerate() {
            let path = path.index(index);
            errors.extend(one(&path, driver));
            if !driver.name.is_empty() && !seen.insert(&driver.name) {
                errors.push(path.child("name").duplicate(driver.name.as_str()));
            }
        }
        for was in old.iter().flat_map(|old| &old.spec.drivers) {
            let now = self.spec.drivers.iter().find(|new| new.name == was.name);
            // How much can be attached may change while the driver runs.
            let with_count = |driver: &CSINodeDriver| CSINodeDriver {
                allocatable: was.allocatable.clone(),
                ..driver.clone()
            };
            if let Some(now) = now
                && with_count(now) != *was
            {
                let value = serde_json::to_value(now).unwrap_or_default();
                errors.push(Path::new("CSINodeDriver").invalid(value, FIELD_IS_IMMUTABLE));
            }
        }
        errors
    }
}

fn one(path: &Path, driver: &CSINodeDriver) -> Vec<FieldError> {
    let at = path.child("name");
    let mut errors = match driver.name.as_str() {
        "" => vec![at.required("")],
        name => at.invalid_all(name, csidriver::name(name, false)),
    };
    let at = path.child("nodeID");
    match driver.node_id.len() {
        0 => errors.push(at.required("")),
        length if length > MAX_NODE_ID => errors.push(at.too_long(MAX_NODE_ID)),
        _ => {}
    }
    let count = driver.allocatable.as_ref().and_then(|a| a.count);
    errors.extend(not_negative(
        &path.child("allocatable").child("count"),
        count.unwrap_or_default().into(),
    ));
    let (at, mut seen) = (path.child("topologyKeys"), BTreeSet::new());
    for key in driver.topology_keys.iter().flatten() {
        if !seen.insert(key) {
            errors.push(at.duplicate(key.as_str()));
        }
        errors.extend(labels::key(&at, key));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(new: Value, old: Value) -> Vec<String> {
        let node = |drivers: Value| -> CSINode {
            serde_json::from_value(json!({"spec": {"drivers": drivers}})).unwrap()
        };
        let errors = Strategy::validate(&node(new), Some(&node(old)));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_driver_has_a_name_and_knows_the_node() {
        assert_eq!(
            texts(
                json!([{"topologyKeys": ["a", "a"], "allocatable": {"count": -1}}]),
                json!([])
            ),
            [
                "spec.drivers[0].name: Required value",
                "spec.drivers[0].nodeID: Required value",
                "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
                "spec.drivers[0].topologyKeys: Duplicate value: \"a\"",
            ]
        );
    }

    #[test]
    fn a_driver_stays_but_for_what_it_can_attach() {
        let old = json!([{"name": "d", "nodeID": "n"}]);
        let more = json!([{"name": "d", "nodeID": "n", "allocatable": {"count": 5}}]);
        assert_eq!(texts(more, old.clone()), Vec::<String>::new());
        let other = texts(json!([{"name": "d", "nodeID": "m"}]), old);
        assert!(
            other[0].starts_with("CSINodeDriver: Invalid value: "),
            "{other:?}"
        );
    }
}
