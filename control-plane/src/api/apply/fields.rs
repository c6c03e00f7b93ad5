//! Sets of fields, and how `managedFields` writes them: `FieldsV1`.
//!
//! ```text
//! {"f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}}}}}
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

use crate::api::patch::schema::Key;

/// How deep a set from outside may go; no kind of ours is half as deep.
const DEPTH: usize = 64;

/// One step of a path, in the notation of `FieldsV1`: `f:NAME` a field, `k:{…}` an item by its keys, `v:…` a value of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(String);

impl Step {
    pub fn field(name: &str) -> Self {
        Self(format!("f:{name}"))
    }

    /// The field that it steps to.
    pub fn name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    /// The item of a list with these values of its keys; the key's name when the item lacks one that has no default.
    pub fn item(item: &Value, keys: &[Key]) -> Result<Self, &'static str> {
        let mut sorted = BTreeMap::new();
        for key in keys {
            let value = match (item.get(key.name), key.default) {
                (Some(value), _) if !value.is_null() => value.clone(),
                (_, Some(default)) => json!(default),
                (_, None) => return Err(key.name),
            };
            sorted.insert(key.name, value);
        }
        // A map of strings to values is always JSON.
        Ok(Self(format!("k:{}", json!(sorted))))
    }

    pub fn value(value: &Value) -> Self {
        Self(format!("v:{value}"))
    }
}

/// As people write it: `.name`, `[name="web"]`, `[="v"]`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(2) {
            Some(("f:", name)) => write!(f, ".{name}"),
            Some(("v:", value)) => write!(f, "[={value}]"),
            Some(("k:", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            _ => write!(f, "[{}]", self.0),
        }
    }
}

/// A set of fields, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Whether the place itself belongs to the set.
    pub here: bool,
    pub below: BTreeMap<Step, Fields>,
}

impl Fields {
    pub fn place() -> Self {
        Self {
            here: true,
            below: BTreeMap::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// Adds what is below a step, if there is anything.
    pub fn put(&mut self, step: Step, fields: Fields) {
        if !fields.is_empty() {
            self.below.entry(step).or_default().add(&fields);
        }
    }

    pub fn add(&mut self, other: &Fields) {
        self.here |= other.here;
        for (step, fields) in &other.below {
            self.below.entry(step.clone()).or_default().add(fields);
        }
    }

    pub fn remove(&mut self, other: &Fields) {
        self.here &= !other.here;
        for (step, fields) in &other.below {
            if let Some(ours) = self.below.get_mut(step) {
                ours.remove(fields);
                if ours.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    /// What is in both.
    pub fn common(&self, other: &Fields) -> Fields {
        let mut common = Fields {
            here: self.here && other.here,
            below: BTreeMap::new(),
        };
        for (step, fields) in &self.below {
            if let Some(others) = other.below.get(step) {
                common.put(step.clone(), fields.common(others));
            }
        }
        common
    }

    /// The set without what is at or below a path of fields.
    pub fn forget(&mut self, path: &[&str]) {
        let Some((name, rest)) = path.split_first() else {
            *self = Self::default();
            return;
        };
        let step = Step::field(name);
        if let Some(fields) = self.below.get_mut(&step) {
            fields.forget(rest);
            if fields.is_empty() {
                self.below.remove(&step);
            }
        }
    }

    /// The set without a field itself, but with what is below it.
    pub fn unmark(&mut self, name: &str) {
        let step = Step::field(name);
        if let Some(fields) = self.below.get_mut(&step) {
            fields.here = false;
            if fields.is_empty() {
                self.below.remove(&step);
            }
        }
    }

    /// The set without all but what is at or below a path of fields.
    pub fn keep(&mut self, path: &[&str]) {
        let Some((name, rest)) = path.split_first() else {
            return;
        };
        let name = Step::field(name);
        self.here = false;
        self.below.retain(|step, fields| {
            fields.keep(rest);
            *step == name && !fields.is_empty()
        });
    }

    /// Its members' paths as people write them.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(&mut String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: &mut String, paths: &mut Vec<String>) {
        if self.here {
            paths.push(path.clone());
        }
        for (step, fields) in &self.below {
            let length = path.len();
            // Writing to a string cannot fail.
            let _ = write!(path, "{step}");
            fields.collect(path, paths);
            path.truncate(length);
        }
    }

    /// `FieldsV1`.
    pub fn to_json(&self) -> Value {
        // A leaf is a member without saying so.
        if self.below.is_empty() {
            return json!({});
        }
        let mut map = Map::new();
        if self.here {
            map.insert(".".to_owned(), json!({}));
        }
        for (Step(step), fields) in &self.below {
            map.insert(step.clone(), fields.to_json());
        }
        Value::Object(map)
    }

    /// The set that `FieldsV1` means; the message when it means none.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let mut fields = Self::read(json, DEPTH)?;
        // Of the whole an empty map means nothing.
        fields.here &= !fields.below.is_empty();
        Ok(fields)
    }

    fn read(json: &Value, depth: usize) -> Result<Self, String> {
        let map = json.as_object().ok_or("a set of fields is an object")?;
        if depth == 0 {
            return Err(format!("a set of fields is at most {DEPTH} levels deep"));
        }
        let mut fields = Fields {
            here: map.is_empty() || map.contains_key("."),
            below: BTreeMap::new(),
        };
        for (step, below) in map.iter().filter(|(step, _)| *step != ".") {
            let known = ["f:", "k:", "v:", "i:"];
            if !known.iter().any(|kind| step.starts_with(kind)) {
                return Err(format!("{step:?} is no step of a path"));
            }
            let below = Self::read(below, depth - 1)?;
            fields.below.insert(Step(step.clone()), below);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: Value) -> Fields {
        Fields::from_json(&json).unwrap()
    }

    #[test]
    fn a_set_is_written_as_clients_read_it() {
        let json = json!({"f:spec": {
            "f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:image": {}}},
            "f:replicas": {}
        }});
        let fields = read(json.clone());
        assert_eq!(fields.to_json(), json);
        assert_eq!(
            fields.paths(),
            [
                ".spec.containers[name=\"web\"]",
                ".spec.containers[name=\"web\"].image",
                ".spec.replicas"
            ]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let mut deep = json!({});
        for _ in 0..=DEPTH {
            deep = json!({ "f:a": deep });
        }
        for json in [json!(1), json!({"f:a": 1}), json!({"spec": {}}), deep] {
            assert!(Fields::from_json(&json).is_err(), "{json}");
        }
        assert!(read(json!({})).is_empty());
    }

    #[test]
    fn an_item_is_named_by_its_keys_in_order() {
        let keys = [
            Key {
                name: "port",
                default: None,
            },
            Key {
                name: "protocol",
                default: Some("TCP"),
            },
        ];
        let step = Step::item(&json!({"port": 80}), &keys).unwrap();
        assert_eq!(step.0, r#"k:{"port":80,"protocol":"TCP"}"#);
        assert_eq!(step.to_string(), r#"[port=80,protocol="TCP"]"#);
        assert_eq!(Step::item(&json!({"name": "a"}), &keys), Err("port"));
        assert_eq!(Step::value(&json!("x")).to_string(), "[=\"x\"]");
    }

    fn any_fields() -> impl Strategy<Value = Fields> {
        let leaf = Just(Fields::place());
        leaf.prop_recursive(3, 24, 4, |inner| {
            let below =
                prop::collection::btree_map("[a-c]".prop_map(|n| Step::field(&n)), inner, 1..4);
            (any::<bool>(), below).prop_map(|(here, below)| Fields { here, below })
        })
    }

    fn members(fields: &Fields) -> std::collections::BTreeSet<String> {
        fields.paths().into_iter().collect()
    }

    proptest! {
        #[test]
        fn trees_behave_as_sets_of_paths(a in any_fields(), b in any_fields()) {
            let (left, right) = (members(&a), members(&b));
            prop_assert_eq!(members(&a.common(&b)), &left & &right);
            let mut union = a.clone();
            union.add(&b);
            prop_assert_eq!(members(&union), &left | &right);
            let mut difference = a.clone();
            difference.remove(&b);
            prop_assert_eq!(members(&difference), &left - &right);
            if !a.below.is_empty() {
                prop_assert_eq!(Fields::from_json(&a.to_json()), Ok(a));
            }
        }
    }
}
