//! Telling the API a pod's status, and in the end that the pod is gone. One task for each pod, so that a slow or absent
//! API server never holds up the pod itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::runtime::PodRef;

/// What the API should know. Only the newest counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Report {
    #[default]
    Nothing,
    Status {
        status: Box<PodStatus>,
        /// Rises when somebody else wrote over what was reported: it has to be said again.
        repeat: u64,
    },
    /// The pod is off the node: its object may go. Before that it gets its last status.
    Gone(Box<PodStatus>),
}

/// The shortest and the longest wait before another attempt.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Keeps the API informed until the pod is gone from it, or the sender is.
pub(super) async fn run(
    client: Client,
    pod: PodRef,
    mut known: PodStatus,
    mut reports: watch::Receiver<Report>,
) {
    let api = Api::<Pod>::namespaced(client, &pod.namespace);
    let mut wait = RETRY.0;
    let mut repeated = 0;
    loop {
        let report = reports.borrow_and_update().clone();
        let done = match &report {
            Report::Nothing => Ok(()),
            Report::Status { status, repeat } => {
                if *repeat != repeated {
                    repeated = *repeat;
                    known = PodStatus::default();
                }
                write(&api, &pod, &mut known, status).await
            }
            Report::Gone(status) => match write(&api, &pod, &mut known, status).await {
                Ok(()) => delete(&api, &pod).await,
                Err(error) => Err(error),
            },
        };
        match done {
            Ok(()) if matches!(report, Report::Gone(_)) => return,
            Ok(()) => {
                wait = RETRY.0;
                if reports.changed().await.is_err() {
                    return;
                }
            }
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                tracing::warn!(pod = pod.name, namespace = pod.namespace, %error, "the pod's status was not taken; trying again");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // A newer report is no reason to wait less, but its sender's end is one to stop.
                    result = reports.changed() => if result.is_err() { return },
                }
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

async fn write(
    api: &Api<Pod>,
    pod: &PodRef,
    known: &mut PodStatus,
    status: &PodStatus,
) -> Result<(), kube::Error> {
    if known == status {
        return Ok(());
    }
    let patch = patch(pod, status);
    api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    known.clone_from(status);
    Ok(())
}

/// The uid makes the patch fail on a pod of the same name that came after this one.
fn patch(pod: &PodRef, status: &PodStatus) -> Value {
    let mut status = json!(status);
    // A patch says by null what is no more.
    nulls(&mut status, &["reason", "message", "podIP", "podIPs"]);
    // Conditions and addresses are merged by their keys: those of others stay, and so would what these had before.
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        nulls(condition, &["reason", "message"]);
    }
    if let Some(addresses) = status["podIPs"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    json!({"metadata": {"uid": pod.uid}, "status": status})
}

fn nulls(object: &mut Value, names: &[&str]) {
    if let Some(fields) = object.as_object_mut() {
        for &name in names {
            fields.entry(name).or_insert(Value::Null);
        }
    }
}

async fn delete(api: &Api<Pod>, pod: &PodRef) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match api.delete(&pod.name, &params).await {
        // Another pod has the name by now.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => result.map(|_| ()),
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    #[test]
    fn what_a_condition_no_longer_says_is_taken_back() {
        let pod = PodRef {
            namespace: "default".into(),
            name: "p".into(),
            uid: "u".into(),
        };
        let status = PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                ..PodCondition::default()
            }]),
            pod_ips: Some(vec![PodIP {
                ip: "10.244.0.2".into(),
            }]),
            ..PodStatus::default()
        };
        let patch = patch(&pod, &status);
        assert_eq!(
            patch["status"]["conditions"][0],
            json!({"type": "Ready", "status": "True", "reason": null, "message": null})
        );
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{"ip": "10.244.0.2"}, {"$patch": "replace"}])
        );
    }
}
