//! RoleBinding and ClusterRoleBinding: who has a role.

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::GROUP;
use crate::resources::{
    Column, FieldError, Strategy, age, print,
    validate::{NameRule, Path, names},
};

const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Role", "The role that is given."),
    Column::AGE,
    Column::text("Users", "The users who have it.").wide(),
    Column::text("Groups", "The groups that have it.").wide(),
    Column::text("ServiceAccounts", "The service accounts that have it.").wide(),
];

impl Strategy for RoleBinding {
    const SINGULAR: &'static str = "rolebinding";
    const COLUMNS: &'static [Column] = COLUMNS;
    const NAME_RULE: NameRule = names::path_segment;

    fn row(&self, now: i64) -> Vec<Value> {
        row(
            &self.metadata,
            &self.role_ref,
            self.subjects.as_deref(),
            now,
        )
    }

    fn set_defaults(&mut self) {
        set_defaults(&mut self.role_ref, self.subjects.as_deref_mut());
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = role_ref(&self.role_ref, &["Role", "ClusterRole"]);
        errors.extend(subjects(self.subjects.as_deref(), true));
        errors.extend(old.and_then(|old| same_role(&self.role_ref, &old.role_ref)));
        errors
    }
}

impl Strategy for ClusterRoleBinding {
    const SINGULAR: &'static str = "clusterrolebinding";
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = COLUMNS;
    const NAME_RULE: NameRule = names::path_segment;

    fn row(&self, now: i64) -> Vec<Value> {
        row(
            &self.metadata,
            &self.role_ref,
            self.subjects.as_deref(),
            now,
        )
    }

    fn set_defaults(&mut self) {
        set_defaults(&mut self.role_ref, self.subjects.as_deref_mut());
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = role_ref(&self.role_ref, &["ClusterRole"]);
        errors.extend(subjects(self.subjects.as_deref(), false));
        errors.extend(old.and_then(|old| same_role(&self.role_ref, &old.role_ref)));
        errors
    }
}

fn set_defaults(role: &mut RoleRef, subjects: Option<&mut [Subject]>) {
    if role.api_group.is_empty() {
        role.api_group = GROUP.to_owned();
    }
    for subject in subjects.unwrap_or_default() {
        if matches!(subject.kind.as_str(), "User" | "Group") {
            let group = subject.api_group.get_or_insert_default();
            if group.is_empty() {
                *group = GROUP.to_owned();
            }
        }
    }
}

fn role_ref(role: &RoleRef, kinds: &[&str]) -> Vec<FieldError> {
    let path = Path::new("roleRef");
    let mut errors = Vec::new();
    if role.api_group != GROUP {
        let path = path.child("apiGroup");
        errors.push(path.unsupported(&role.api_group, &[GROUP]));
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.push(path.child("kind").unsupported(&role.kind, kinds));
    }
    let path = path.child("name");
    if role.name.is_empty() {
        errors.push(path.required(""));
    }
    errors.extend(path.invalid_all(&role.name, names::path_segment(&role.name, false)));
    errors
}

fn same_role(new: &RoleRef, old: &RoleRef) -> Option<FieldError> {
    let shown = serde_json::to_value(new).unwrap_or(Value::Null);
    (new != old).then(|| Path::new("roleRef").invalid(shown, "cannot change roleRef"))
}

fn subjects(subjects: Option<&[Subject]>, namespaced: bool) -> Vec<FieldError> {
    let path = Path::new("subjects");
    let each = subjects.unwrap_or_default().iter().enumerate();
    each.flat_map(|(index, one)| subject(&path.index(index), one, namespaced))
        .collect()
}

fn subject(path: &Path, subject: &Subject, namespaced: bool) -> Vec<FieldError> {
    let group = subject.api_group.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    if subject.name.is_empty() {
        errors.push(path.child("name").required(""));
    }
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                let wrong = names::dns1123_subdomain(&subject.name, false);
                errors.extend(path.child("name").invalid_all(&subject.name, wrong));
            }
            if !group.is_empty() {
                errors.push(path.child("apiGroup").unsupported(group, &[""]));
            }
            if !namespaced && subject.namespace.as_deref().unwrap_or_default().is_empty() {
                errors.push(path.child("namespace").required(""));
            }
        }
        "User" | "Group" if group == GROUP => {}
        "User" | "Group" => errors.push(path.child("apiGroup").unsupported(group, &[GROUP])),
        other => {
            let kinds = ["Group", "ServiceAccount", "User"];
            errors.push(path.child("kind").unsupported(other, &kinds));
        }
    }
    errors
}

fn row(
    metadata: &ObjectMeta,
    role: &RoleRef,
    subjects: Option<&[Subject]>,
    now: i64,
) -> Vec<Value> {
    let named = |kind: &str| {
        let chosen = subjects.unwrap_or_default().iter();
        let names: Vec<String> = chosen
            .filter(|subject| subject.kind == kind)
            .map(|subject| match &subject.namespace {
                Some(namespace) if kind == "ServiceAccount" => {
                    format!("{namespace}/{}", subject.name)
                }
                _ => subject.name.clone(),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        json!(print::name(metadata)),
        json!(format!("{}/{}", role.kind, role.name)),
        json!(age::of(metadata, now)),
        named("User"),
        named("Group"),
        named("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding<T: Strategy>(role: Value, subjects: Value) -> T {
        let mut binding: T = serde_json::from_value(
            json!({ "metadata": { "name": "b" }, "roleRef": role, "subjects": subjects }),
        )
        .unwrap();
        binding.set_defaults();
        binding
    }

    fn errors<T: Strategy>(new: &T, old: Option<&T>) -> Vec<String> {
        let errors = Strategy::validate(new, old);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn groups_of_the_api_are_filled_in() {
        let made: RoleBinding = binding(
            json!({ "kind": "Role", "name": "r" }),
            json!([{ "kind": "User", "name": "u" }, { "kind": "ServiceAccount", "name": "s" }]),
        );
        assert_eq!(made.role_ref.api_group, GROUP);
        let subjects = made.subjects.clone().unwrap();
        assert_eq!(subjects[0].api_group.as_deref(), Some(GROUP));
        assert_eq!(subjects[1].api_group, None);
        assert_eq!(errors(&made, None), Vec::<String>::new());
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        let subjects = json!([
            { "kind": "User", "name": "", "apiGroup": "apps" },
            { "kind": "ServiceAccount", "name": "A b", "apiGroup": "apps" },
            { "kind": "Node", "name": "n" },
        ]);
        let role = json!({ "kind": "Role", "name": "a/b", "apiGroup": "apps" });
        let found = errors(&binding::<ClusterRoleBinding>(role, subjects), None);
        let starts = [
            "roleRef.apiGroup: Unsupported value: \"apps\": supported values: \"rbac.authorization.k8s.io\"",
            "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            "roleRef.name: Invalid value: \"a/b\": may not contain '/'",
            "subjects[0].name: Required value",
            "subjects[0].apiGroup: Unsupported value: \"apps\": supported values: \"rbac.authorization.k8s.io\"",
            "subjects[1].name: Invalid value: \"A b\": a lowercase RFC 1123 subdomain",
            "subjects[1].apiGroup: Unsupported value: \"apps\": supported values: \"\"",
            "subjects[1].namespace: Required value",
            "subjects[2].kind: Unsupported value: \"Node\": supported values: \"Group\", \"ServiceAccount\", \"User\"",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}\n{start}");
        }
    }

    #[test]
    fn a_binding_keeps_its_role() {
        let of = |name: &str| -> RoleBinding {
            binding(json!({ "kind": "Role", "name": name }), json!([]))
        };
        let found = errors(&of("b"), Some(&of("a")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("roleRef: Invalid value: ")
                && found[0].ends_with(": cannot change roleRef")
        );
        assert!(errors(&of("a"), Some(&of("a"))).is_empty());
    }

    #[test]
    fn the_row_names_role_and_subjects() {
        let made: RoleBinding = binding(
            json!({ "kind": "ClusterRole", "name": "view" }),
            json!([
                { "kind": "User", "name": "a" }, { "kind": "User", "name": "b" },
                { "kind": "ServiceAccount", "namespace": "n", "name": "s" },
            ]),
        );
        assert_eq!(
            Strategy::row(&made, 0),
            ["b", "ClusterRole/view", "<unknown>", "a, b", "", "n/s"]
        );
    }
}
