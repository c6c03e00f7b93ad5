//! Pod, and what pods share with the templates of workloads.

mod addresses;
mod affinity;
mod columns;
mod containers;
pub mod defaults;
pub mod ephemeral;
mod files;
mod os;
pub mod qos;
pub mod requests;
pub mod resize;
mod restarts;
mod security;
mod update;
pub mod validate;
mod volumes;
pub mod whole;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use serde_json::Value;

pub use self::update::MIRROR;
use super::{
    Column, FieldError, Strategy, Subresource,
    kind::carry_generation,
    validate::{NameRule, Path, names},
};

impl Strategy for Pod {
    const SINGULAR: &'static str = "pod";
    const SHORT_NAMES: &'static [&'static str] = &["po"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Log,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::EphemeralContainers,
        Subresource::Resize,
        Subresource::Proxy,
    ];
    const COLUMNS: &'static [Column] = columns::COLUMNS;
    const PRIVATE_TO_NODE: bool = true;
    const RETURNS_DELETED_OBJECT: bool = true;
    const NAME_RULE: NameRule = names::dns1123_subdomain;

    fn row(&self, now: i64) -> Vec<Value> {
        columns::row(self, now)
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        defaults::pod(spec);
        if let Some(status) = &mut self.status {
            addresses::default(status);
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        let spec = self.spec.get_or_insert_default();
        self.status = Some(PodStatus {
            phase: Some("Pending".to_owned()),
            qos_class: Some(qos::class(spec).to_owned()),
            ..PodStatus::default()
        });
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
        self.metadata.owner_references = old.metadata.owner_references.clone();
        let was = old
            .status
            .as_ref()
            .and_then(|status| status.qos_class.clone());
        self.status.get_or_insert_default().qos_class = was;
    }

    /// Only a pod that a node runs needs time to stop.
    fn grace_period(&self, asked: Option<i64>) -> i64 {
        let spec = self.spec.as_ref();
        let is_bound = spec
            .and_then(|spec| spec.node_name.as_deref())
            .is_some_and(|node| !node.is_empty());
        let phase = self
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if !is_bound || matches!(phase, Some("Succeeded" | "Failed")) {
            return 0;
        }
        let own = spec.and_then(|spec| spec.termination_grace_period_seconds);
        match asked.or(own).unwrap_or(30) {
            ..0 => 1,
            // More than anybody waits for is as good as the most: the time it ends must be one that can be written.
            grace => grace.min(validate::MAX_GRACE),
        }
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let empty = PodSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let mut errors = validate::spec(&path, spec);
        errors.extend(volumes::unnamed_images(
            &path.child("volumes"),
            spec.volumes.as_deref().unwrap_or_default(),
        ));
        if let Some(old) = old {
            errors.extend(update::mirror_errors(&self.metadata, &old.metadata));
            errors.extend(update::errors(
                &path,
                spec,
                old.spec.as_ref().unwrap_or(&empty),
            ));
        } else {
            errors.extend(validate::of_new(&path, spec));
        }
        if let Some(status) = &self.status {
            errors.extend(addresses::errors(&Path::new("status"), status));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.as_ref();
        let status = self.status.as_ref();
        let of_spec = |field: fn(&PodSpec) -> &Option<String>| {
            spec.and_then(|spec| field(spec).clone())
                .unwrap_or_default()
        };
        let of_status = |field: fn(&PodStatus) -> &Option<String>| {
            status
                .and_then(|status| field(status).clone())
                .unwrap_or_default()
        };
        let host_network = spec.and_then(|spec| spec.host_network).unwrap_or_default();
        vec![
            ("spec.nodeName", of_spec(|spec| &spec.node_name)),
            ("spec.restartPolicy", of_spec(|spec| &spec.restart_policy)),
            ("spec.schedulerName", of_spec(|spec| &spec.scheduler_name)),
            (
                "spec.serviceAccountName",
                of_spec(|spec| &spec.service_account_name),
            ),
            ("spec.hostNetwork", host_network.to_string()),
            ("status.phase", of_status(|status| &status.phase)),
            ("status.podIP", of_status(|status| &status.pod_ip)),
            (
                "status.nominatedNodeName",
                of_status(|status| &status.nominated_node_name),
            ),
        ]
    }
}
