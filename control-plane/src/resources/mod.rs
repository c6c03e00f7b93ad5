//! The kinds: one file each, with its names, columns, defaults, validation and strategy as data and pure functions.
//!
//! A kind implements [`Strategy`] for its k8s-openapi struct; [`Kind::of`] erases the type, and [`kinds`] is the table
//! that the generic registry serves from.

pub mod age;
mod certificatesigningrequest;
mod componentstatus;
mod configmap;
mod controllerrevision;
pub(crate) mod cronjob;
mod csidriver;
mod csinode;
mod csistoragecapacity;
mod daemonset;
mod decode;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
pub mod form;
mod horizontalpodautoscaler;
pub mod ingress;
pub mod ingressclass;
mod ipaddress;
pub mod job;
mod kind;
mod lease;
mod limitrange;
mod namespace;
mod networkpolicy;
mod node;
mod persistentvolume;
mod persistentvolumeclaim;
pub mod pod;
pub mod poddisruptionbudget;
mod podtemplate;
pub mod print;
pub mod priorityclass;
pub mod quantity;
pub mod rbac;
mod replicaset;
mod replicationcontroller;
pub mod resourcequota;
mod runtimeclass;
mod secret;
mod service;
mod serviceaccount;
mod servicecidr;
mod statefulset;
pub mod storageclass;
pub mod validate;
mod volumeattachment;
mod volumeattributesclass;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    autoscaling::{
        v1::HorizontalPodAutoscaler as AutoscalingV1HorizontalPodAutoscaler,
        v2::HorizontalPodAutoscaler,
    },
    batch::v1::{CronJob, Job},
    certificates::v1::CertificateSigningRequest,
    coordination::v1::Lease,
    core::v1::{
        ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node,
        PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate, ReplicationController,
        ResourceQuota, Secret, Service, ServiceAccount,
    },
    discovery::v1::EndpointSlice,
    events::v1::Event as EventsV1Event,
    networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR},
    node::v1::RuntimeClass,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    scheduling::v1::PriorityClass,
    storage::v1::{
        CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
        VolumeAttributesClass,
    },
};

pub use decode::{DecodeError, duplicate_fields};
pub use kind::{Column, Conversion, Decode, Kind, Strategy, Subresource};
pub use service::{Family, service_address_errors};
pub use validate::{FieldError, FieldErrorReason};

static KINDS: &[Kind] = &[
    Kind::of::<ComponentStatus>(),
    Kind::of::<ConfigMap>(),
    Kind::of::<Endpoints>(),
    Kind::of::<Event>(),
    Kind::of::<LimitRange>(),
    Kind::of::<Namespace>(),
    Kind::of::<Node>(),
    Kind::of::<PersistentVolume>(),
    Kind::of::<PersistentVolumeClaim>(),
    Kind::of::<Pod>(),
    Kind::of::<ResourceQuota>(),
    Kind::of::<PodTemplate>(),
    Kind::of::<ReplicationController>(),
    Kind::of::<Secret>(),
    Kind::of::<Service>(),
    Kind::of::<ServiceAccount>(),
    Kind::of::<ControllerRevision>(),
    Kind::of::<DaemonSet>(),
    Kind::of::<Deployment>(),
    Kind::of::<ReplicaSet>(),
    Kind::of::<StatefulSet>(),
    // The preferred version of a group comes first.
    Kind::of::<HorizontalPodAutoscaler>(),
    Kind::of::<AutoscalingV1HorizontalPodAutoscaler>(),
    Kind::of::<CronJob>(),
    Kind::of::<Job>(),
    Kind::of::<CertificateSigningRequest>(),
    Kind::of::<Lease>(),
    Kind::of::<EndpointSlice>(),
    Kind::of::<EventsV1Event>(),
    Kind::of::<NetworkPolicy>(),
    Kind::of::<IPAddress>(),
    Kind::of::<Ingress>(),
    Kind::of::<IngressClass>(),
    Kind::of::<ServiceCIDR>(),
    Kind::of::<RuntimeClass>(),
    Kind::of::<PodDisruptionBudget>(),
    Kind::of::<ClusterRole>(),
    Kind::of::<ClusterRoleBinding>(),
    Kind::of::<Role>(),
    Kind::of::<RoleBinding>(),
    Kind::of::<PriorityClass>(),
    Kind::of::<CSIDriver>(),
    Kind::of::<CSINode>(),
    Kind::of::<CSIStorageCapacity>(),
    Kind::of::<StorageClass>(),
    Kind::of::<VolumeAttachment>(),
    Kind::of::<VolumeAttributesClass>(),
];

/// Every kind that is served, the core group first.
pub fn kinds() -> &'static [Kind] {
    KINDS
}

/// The kind served at `/apis/<group>/<version>/<plural>`; the core group is empty.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_decodes_an_empty_object_and_prints_as_many_cells_as_columns() {
        for kind in kinds() {
            let (object, dropped) = (kind.decode)(json!({ "metadata": { "name": "x" } })).unwrap();
            assert_eq!(dropped, Vec::<String>::new(), "{}", kind.kind);
            assert_eq!(object["kind"], kind.kind);
            assert_eq!(object["apiVersion"], kind.api_version());
            assert_eq!(
                (kind.row)(&object, 0).len(),
                kind.columns.len(),
                "{}",
                kind.kind
            );
        }
    }

    #[test]
    fn preparing_is_idempotent_for_every_kind() {
        for kind in kinds() {
            let (mut object, _) = (kind.decode)(json!({ "metadata": { "name": "x" } })).unwrap();
            (kind.default)(&mut object);
            let once = object.clone();
            (kind.default)(&mut object);
            assert_eq!(object, once, "{} defaults", kind.kind);
            (kind.prepare_create)(&mut object);
            let once = object.clone();
            (kind.prepare_create)(&mut object);
            assert_eq!(object, once, "{} prepare_create", kind.kind);
            (kind.prepare_update)(&mut object, &once);
            assert_eq!(object, once, "{} prepare_update", kind.kind);
            (kind.prepare_status)(&mut object, &once);
            assert_eq!(object, once, "{} prepare_status", kind.kind);
        }
    }

    #[test]
    fn names_are_unique_within_a_version() {
        for kind in kinds() {
            let same = kinds().iter().filter(|other| {
                (other.group, other.version) == (kind.group, kind.version)
                    && (other.plural == kind.plural || other.kind == kind.kind)
            });
            assert_eq!(same.count(), 1, "{}", kind.plural);
            assert!(find(kind.group, kind.version, kind.plural).is_some());
        }
    }
}
