//! Namespace.

use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print,
    validate::{NameRule, Path, names},
};

/// The finalizer that keeps a namespace until its contents are gone.
const FINALIZER: &str = "kubernetes";

impl Strategy for Namespace {
    const SINGULAR: &'static str = "namespace";
    const SHORT_NAMES: &'static [&'static str] = &["ns"];
    const NAMESPACED: bool = false;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Finalize];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Status", "The phase of the namespace's life."),
        Column::AGE,
    ];
    const NAME_RULE: NameRule = names::dns1123_label;

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(phase(self)),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        // Every namespace can be selected by its own name.
        if let Some(name) = self.metadata.name.clone().filter(|name| !name.is_empty()) {
            self.metadata
                .labels
                .get_or_insert_default()
                .insert("kubernetes.io/metadata.name".to_owned(), name);
        }
    }

    fn prepare_create(&mut self) {
        let finalizers = self
            .spec
            .get_or_insert_default()
            .finalizers
            .get_or_insert_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        self.status = Some(NamespaceStatus {
            phase: Some("Active".to_owned()),
            conditions: None,
        });
    }

    fn prepare_update(&mut self, old: &Self) {
        self.spec
            .get_or_insert_with(NamespaceSpec::default)
            .finalizers = old.spec.as_ref().and_then(|spec| spec.finalizers.clone());
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec").child("finalizers");
        let finalizers = self
            .spec
            .iter()
            .flat_map(|spec| spec.finalizers.iter().flatten());
        finalizers
            .flat_map(|name| path.invalid_all(name, names::qualified(name)))
            .collect()
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("status.phase", phase(self)),
            ("name", print::name(&self.metadata)),
        ]
    }
}

fn phase(namespace: &Namespace) -> String {
    namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.clone())
        .unwrap_or_default()
}
