//! ControllerRevision: what a controller's object once was, so that it can be gone back to.

use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    validate::{self, Path, none_negative},
};

impl Strategy for ControllerRevision {
    const SINGULAR: &'static str = "controllerrevision";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Controller", "Whose state it holds."),
        Column::integer("Revision", "Its place in the history."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let owners = self.metadata.owner_references.iter().flatten();
        let mut controllers = owners.filter(|owner| owner.controller == Some(true));
        let controller = controllers.next().map(|owner| {
            let kind = owner.kind.to_lowercase();
            match owner.api_version.split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", owner.name),
                None => format!("{kind}/{}", owner.name),
            }
        });
        vec![
            json!(print::name(&self.metadata)),
            json!(print::or_none(controller.as_deref())),
            json!(self.revision),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::root();
        let mut errors = Vec::new();
        if self.data.is_none() {
            errors.push(path.child("data").required("data is mandatory"));
        }
        errors.extend(none_negative(&path, &[("revision", self.revision)]));
        if let Some(old) = old {
            let path = path.child("data");
            errors.extend(validate::immutable(&path, &self.data, &old.data));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(value: Value) -> ControllerRevision {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_was_stays_as_it_was() {
        let old = revision(json!({ "data": { "spec": 1 }, "revision": 1 }));
        let new = revision(json!({ "data": { "spec": 2 }, "revision": 2 }));
        let errors = Strategy::validate(&new, Some(&old));
        assert_eq!(
            errors[0].to_string(),
            "data: Invalid value: {\"spec\":2}: field is immutable"
        );
        let empty = revision(json!({ "revision": -1 }));
        assert_eq!(Strategy::validate(&empty, None).len(), 2);
    }

    #[test]
    fn the_row_names_the_controller() {
        let revision = revision(json!({
            "metadata": { "name": "db-1", "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "u", "controller": true },
            ] },
            "revision": 3,
        }));
        assert_eq!(
            Value::from(revision.row(0)),
            json!(["db-1", "statefulset.apps/db", 3, "<unknown>"])
        );
    }
}
