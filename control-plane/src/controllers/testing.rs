//! Objects for tests, built from what matters.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Accounts, Caches, Context, ControllersConfig, Signer};
use crate::auth::tokens::{Authority, Keys};

/// What controllers work with that ask `client`. Their caches are empty.
pub(super) fn context(client: kube::Client) -> Context {
    Context {
        client,
        caches: Arc::new(Caches::new()),
        config: Arc::new(config()),
        shutdown: CancellationToken::new(),
    }
}

/// Upstream's times, and nobody who signs.
pub(super) fn config() -> ControllersConfig {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::open(dir.path()).unwrap();
    let accounts = Accounts {
        authority: String::new(),
        tokens: Arc::new(Authority::new(keys, "https://issuer".to_owned())),
    };
    let signer: Signer = Arc::new(|_, _| unreachable!("nobody asks"));
    ControllersConfig::new("10.244.0.0/16".parse().unwrap(), accounts, signer)
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pending pod in namespace `default`, not bound, with uid `uid-NAME`.
pub(crate) fn pod(name: &str) -> PodBuilder {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("default".into());
    pod.metadata.uid = Some(format!("uid-{name}"));
    pod.metadata.creation_timestamp = Some(Time(at(0)));
    pod.spec = Some(Default::default());
    pod.status = Some(PodStatus {
        phase: Some("Pending".into()),
        ..PodStatus::default()
    });
    PodBuilder(pod)
}

#[derive(Clone, Debug)]
pub(crate) struct PodBuilder(Pod);

impl PodBuilder {
    fn status(&mut self) -> &mut PodStatus {
        self.0.status.get_or_insert_default()
    }

    pub(crate) fn phase(mut self, phase: &str) -> Self {
        self.status().phase = Some(phase.into());
        self
    }

    pub(crate) fn created_at(mut self, second: i64) -> Self {
        self.0.metadata.creation_timestamp = Some(Time(at(second)));
        self
    }

    pub(crate) fn on(mut self, node: &str) -> Self {
        self.0.spec.get_or_insert_default().node_name = Some(node.into());
        self
    }

    pub(crate) fn ip(mut self, ip: &str) -> Self {
        self.status().pod_ip = Some(ip.into());
        self.status().pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        self
    }

    /// One address more, of the other family.
    pub(crate) fn and_ip(mut self, ip: &str) -> Self {
        let all = self.status().pod_ips.get_or_insert_default();
        all.push(PodIP { ip: ip.into() });
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.0
            .metadata
            .labels
            .get_or_insert_default()
            .insert(key.into(), value.into());
        self
    }

    pub(crate) fn owner(mut self, kind: &str, name: &str, uid: &str) -> Self {
        self.0
            .metadata
            .owner_references
            .get_or_insert_default()
            .push(OwnerReference {
                api_version: "apps/v1".into(),
                kind: kind.into(),
                name: name.into(),
                uid: uid.into(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            });
        self
    }

    /// Running, and ready since `second`.
    pub(crate) fn ready_at(mut self, second: i64) -> Self {
        self.status().phase = Some("Running".into());
        self.status()
            .conditions
            .get_or_insert_default()
            .push(PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(Time(at(second))),
                ..PodCondition::default()
            });
        self
    }

    pub(crate) fn terminating(mut self) -> Self {
        self.0.metadata.deletion_timestamp = Some(Time(at(0)));
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Pod)) -> Self {
        change(&mut self.0);
        self
    }

    pub(crate) fn build(self) -> Pod {
        self.0
    }
}
