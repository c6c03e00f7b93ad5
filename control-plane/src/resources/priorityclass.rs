//! PriorityClass: a name for how much pods matter.

use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age,
    kind::carry_generation,
    print,
    validate::{Path, immutable, one_of},
};

/// What preemption does when nothing is said of it.
pub const PREEMPT: &str = "PreemptLowerPriority";
const POLICIES: &[&str] = &["Never", PREEMPT];
/// What the names of classes begin with that are the system's.
const SYSTEM_PREFIX: &str = "system-";
/// The most that a class of the cluster's users may have.
const HIGHEST: i32 = 1_000_000_000;

/// Name, value and description of a class that every cluster has.
type System = (&'static str, i32, &'static str);
const SYSTEM: [System; 2] = [
    (
        "system-node-critical",
        2 * HIGHEST + 1000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2 * HIGHEST,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// The classes that every cluster has.
pub fn system() -> [PriorityClass; 2] {
    SYSTEM.map(|(name, value, description)| PriorityClass {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        value,
        description: Some(description.to_owned()),
        ..PriorityClass::default()
    })
}

/// Whether the name is of one of them.
pub fn is_system(name: &str) -> bool {
    SYSTEM.iter().any(|(known, ..)| *known == name)
}

impl Strategy for PriorityClass {
    const SINGULAR: &'static str = "priorityclass";
    const SHORT_NAMES: &'static [&'static str] = &["pc"];
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::integer("Value", "The priority that pods of the class get."),
        Column {
            kind: "boolean",
            ..Column::text(
                "Global-Default",
                "Whether pods that name no class get this one.",
            )
        },
        Column::AGE,
        Column::text("PreemptionPolicy", "Whether its pods may displace others."),
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(self.value),
            json!(self.global_default.unwrap_or_default()),
            json!(age::of(&self.metadata, now)),
            json!(self.preemption_policy.as_deref().unwrap_or_default()),
        ]
    }

    fn set_defaults(&mut self) {
        self.preemption_policy
            .get_or_insert_with(|| PREEMPT.to_owned());
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        carry_generation(&mut self.metadata, &old.metadata, false);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let name = print::name(&self.metadata);
        if name.starts_with(SYSTEM_PREFIX) {
            if let Some(why) = no_system_class(self, &name) {
                let path = Path::new("metadata").child("name");
                errors.push(path.forbidden(format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
                )));
            }
        } else if self.value > HIGHEST {
            errors.push(Path::new("value").forbidden(format!(
                "maximum allowed value of a user defined priority is {HIGHEST}"
            )));
        }
        let policy = Path::new("preemptionPolicy");
        if let Some(text) = self.preemption_policy.as_deref() {
            errors.extend(one_of(&policy, Some(text), POLICIES));
        }
        if let Some(old) = old {
            if self.value != old.value {
                errors.push(Path::new("value").forbidden("may not be changed in an update."));
            }
            errors.extend(immutable(
                &policy,
                &self.preemption_policy,
                &old.preemption_policy,
            ));
        }
        errors
    }
}

/// Why a class is none of the system's, if it is none.
fn no_system_class(class: &PriorityClass, name: &str) -> Option<String> {
    let Some((_, value, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if class.value != *value {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    class
        .global_default
        .unwrap_or_default()
        .then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(new: Value, old: Option<Value>) -> Vec<String> {
        let typed = |value: Value| {
            let mut class: PriorityClass = serde_json::from_value(value).unwrap();
            class.set_defaults();
            class
        };
        let old = old.map(typed);
        let errors = Strategy::validate(&typed(new), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    fn class(name: &str, value: i32) -> Value {
        json!({"metadata": {"name": name}, "value": value})
    }

    #[test]
    fn users_and_the_system_have_ranges_of_their_own() {
        assert!(errors(class("high", HIGHEST), None).is_empty());
        assert_eq!(
            errors(class("high", HIGHEST + 1), None),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        for known in system() {
            let known = serde_json::to_value(known).unwrap();
            assert_eq!(errors(known, None), Vec::<String>::new());
        }
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: ";
        assert_eq!(
            errors(class("system-mine", 1), None),
            [format!(
                "{reserved}system-mine is not a known system priority class"
            )]
        );
        assert_eq!(
            errors(class("system-node-critical", 1), None),
            [format!(
                "{reserved}value of system-node-critical PriorityClass must be 2000001000"
            )]
        );
    }

    #[test]
    fn a_class_keeps_its_value_and_policy() {
        let mut new = class("a", 2);
        new["preemptionPolicy"] = json!("Never");
        assert_eq!(
            errors(new, Some(class("a", 1))),
            [
                "value: Forbidden: may not be changed in an update.",
                "preemptionPolicy: Invalid value: \"Never\": field is immutable",
            ]
        );
        let mut odd = class("a", 1);
        odd["preemptionPolicy"] = json!("Sometimes");
        assert_eq!(
            errors(odd, None),
            [
                "preemptionPolicy: Unsupported value: \"Sometimes\": supported values: \"Never\", \"PreemptLowerPriority\""
            ]
        );
    }

    #[test]
    fn the_row_shows_what_the_class_does() {
        let class: PriorityClass = serde_json::from_value(
            json!({"metadata": {"name": "a"}, "value": 7, "globalDefault": true, "preemptionPolicy": "Never"}),
        )
        .unwrap();
        assert_eq!(
            class.row(0),
            [
                json!("a"),
                json!(7),
                json!(true),
                json!("<unknown>"),
                json!("Never")
            ]
        );
    }
}
