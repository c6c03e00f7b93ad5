//! Drives pods away for a more important one, and says so.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tracing::warn;

use super::snapshot::PodInfo;
use super::tell::about;
use crate::controllers::events::{Recorder, Severity};

/// Notes where `pod` is to go and deletes `victims`. What fails is tried again when the pod is looked at the next time.
pub(super) async fn drive_away(
    client: kube::Client,
    events: Recorder,
    pod: PodInfo,
    node: String,
    victims: Vec<PodInfo>,
) {
    let nomination = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": node}});
    if let Err(error) = patch(&client, &pod, &nomination).await {
        warn!(pod = pod.name, namespace = pod.namespace, node, %error, "cannot say where the pod is to go");
    }
    for victim in victims {
        match delete(&client, &victim).await {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                events.report(about(&victim), Severity::Normal, "Preempted", message);
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => {
                let (name, namespace) = (victim.name, victim.namespace);
                warn!(pod = name, namespace, %error, "cannot preempt the pod");
            }
        }
    }
}

/// Notes that `pod` is to go nowhere in particular.
pub(super) async fn withdraw(client: kube::Client, pod: PodInfo) {
    let nowhere = json!({"metadata": {"uid": pod.uid}, "status": {"nominatedNodeName": null}});
    match patch(&client, &pod, &nowhere).await {
        Ok(()) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
        Err(error) => {
            warn!(pod = pod.name, namespace = pod.namespace, %error, "cannot take back where the pod is to go");
        }
    }
}

async fn delete(client: &kube::Client, victim: &PodInfo) -> Result<(), kube::Error> {
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": Time(Timestamp::now()),
    });
    let said = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [condition]}});
    patch(client, victim, &said).await?;
    let same = Preconditions {
        uid: Some(victim.uid.clone()),
        resource_version: None,
    };
    let params = DeleteParams::default().preconditions(same);
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    api.delete(&victim.name, &params).await.map(drop)
}

async fn patch(
    client: &kube::Client,
    pod: &PodInfo,
    patch: &serde_json::Value,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let patch = Patch::Strategic(patch);
    api.patch_status(&pod.name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}
