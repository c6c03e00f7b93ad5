//! IngressClass: who serves Ingresses of a kind.

use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, ingress,
    kind::carry_generation,
    print,
    validate::{Path, immutable, names},
};

/// Marks the class that Ingresses get which name none.
pub const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const SCOPES: &[&str] = &["Cluster", "Namespace"];
const MAX_CONTROLLER: usize = 250;

impl Strategy for IngressClass {
    const SINGULAR: &'static str = "ingressclass";
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Controller", "Who serves the Ingresses."),
        Column::text("Parameters", "Where that finds what more it needs."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let parameters = spec.parameters.map(|to| {
            let group = to.api_group.filter(|group| !group.is_empty());
            let group = group.map(|group| format!(".{group}")).unwrap_or_default();
            format!("{}{group}/{}", to.kind, to.name)
        });
        vec![
            json!(print::name(&self.metadata)),
            json!(spec.controller.unwrap_or_default()),
            json!(print::or_none(parameters.as_deref())),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.as_mut();
        if let Some(to) = spec.and_then(|spec| spec.parameters.as_mut()) {
            to.scope.get_or_insert_with(|| "Cluster".to_owned());
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let (at, controller) = (
            path.child("controller"),
            spec.controller.unwrap_or_default(),
        );
        let mut errors = Vec::new();
        if controller.is_empty() {
            errors.push(at.required(""));
        } else {
            if controller.len() > MAX_CONTROLLER {
                errors.push(at.too_long(MAX_CONTROLLER));
            }
            errors.extend(domain_prefixed(&at, &controller));
        }
        if let Some(to) = &spec.parameters {
            errors.extend(parameters(&path.child("parameters"), to));
        }
        if let Some(old) = old {
            let was = old.spec.clone().unwrap_or_default().controller;
            errors.extend(immutable(&at, &controller, &was.unwrap_or_default()));
        }
        errors
    }
}

/// `example.com/ingress`
fn domain_prefixed(path: &Path, text: &str) -> Vec<FieldError> {
    match text.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            path.invalid_all(domain, names::dns1123_subdomain(domain, false))
        }
        _ => vec![path.invalid(
            text,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        )],
    }
}

fn parameters(path: &Path, to: &IngressClassParametersReference) -> Vec<FieldError> {
    let mut errors = ingress::typed(path, to.api_group.as_deref(), &to.kind, &to.name);
    let namespace = path.child("namespace");
    match (to.scope.as_deref(), to.namespace.as_deref()) {
        (None, _) => errors.push(path.child("scope").required("")),
        (Some("Namespace"), None) => {
            errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        (Some("Namespace"), Some(name)) => {
            errors.extend(namespace.invalid_all(name, names::dns1123_label(name, false)));
        }
        (Some("Cluster"), Some(_)) => {
            errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
        }
        (Some("Cluster"), None) => {}
        (Some(other), _) => errors.push(path.child("scope").unsupported(other, SCOPES)),
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(spec: Value) -> IngressClass {
        let mut class: IngressClass =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap();
        class.set_defaults();
        class
    }

    fn texts(spec: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(class);
        let errors = Strategy::validate(&class(spec), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_class_names_its_controller_for_good() {
        let good = json!({"controller": "example.com/ingress"});
        assert_eq!(texts(good.clone(), None), Vec::<String>::new());
        assert_eq!(texts(json!({}), None), ["spec.controller: Required value"]);
        assert_eq!(
            texts(json!({"controller": "nginx"}), Some(good)),
            [
                "spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                "spec.controller: Invalid value: \"nginx\": field is immutable",
            ]
        );
    }

    #[test]
    fn parameters_are_of_the_cluster_or_of_a_namespace() {
        let with = |scope: &str| {
            let to =
                json!({"apiGroup": "example.com", "kind": "Config", "name": "c", "scope": scope});
            texts(json!({"controller": "a.b/c", "parameters": to}), None)
        };
        assert_eq!(with("Cluster"), Vec::<String>::new());
        assert_eq!(
            with("Namespace"),
            ["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]
        );
        let row = class(json!({"controller": "a.b/c", "parameters": {"apiGroup": "e.com", "kind": "K", "name": "n"}})).row(0);
        assert_eq!(row, ["c", "a.b/c", "K.e.com/n", "<unknown>"]);
    }
}
