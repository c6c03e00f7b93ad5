//! Telling the API a pod's status, and in the end that the pod is gone. One task for each pod, so that a slow or absent
//! API server never holds up the pod itself.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::conditions::PASSING;
use super::shared::Order;
use super::status::is_ready;
use crate::runtime::PodRef;

/// What the API should know. Only the newest counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Report {
    #[default]
    Nothing,
    Status(Arc<PodStatus>),
    /// The pod is off the node: its object may go. Before that it gets its last status.
    Gone(Arc<PodStatus>),
}

/// The shortest and the longest wait before another attempt.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The status that the API has, as far as its last answer tells.
struct Known {
    status: Arc<PodStatus>,
    /// The `resourceVersion` of the object with this status.
    version: Option<u64>,
}

impl Known {
    fn of(pod: Option<&Pod>) -> Known {
        Known {
            status: Arc::new(pod.and_then(|pod| pod.status.clone()).unwrap_or_default()),
            version: pod.and_then(version),
        }
    }

    /// When a node is silent for long, the control plane declares its pods unready. Whoever is back says otherwise.
    fn is_overwritten(&self, seen: &Pod) -> bool {
        let is_newer = match (version(seen), self.version) {
            (Some(seen), Some(known)) => seen > known,
            _ => true,
        };
        is_newer && is_ready(&self.status) && !seen.status.as_ref().is_some_and(is_ready)
    }
}

fn version(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_deref()?.parse().ok()
}

/// Keeps the API informed until the pod is gone from it, or the sender is. `orders` shows what others made of the status.
pub(super) async fn run(
    client: Client,
    pod: PodRef,
    mut reports: watch::Receiver<Report>,
    mut orders: watch::Receiver<Order>,
) {
    let api = Api::<Pod>::namespaced(client, &pod.namespace);
    let mut known = {
        let order = orders.borrow_and_update();
        Known::of(order.pod.as_ref().map(|pod| &pod.object))
    };
    let mut wait = RETRY.0;
    loop {
        let overwritten = {
            let order = orders.borrow_and_update();
            let seen = order.pod.as_ref().map(|pod| &pod.object);
            seen.is_some_and(|seen| known.is_overwritten(seen))
        };
        if overwritten {
            known.status = Arc::default();
        }
        let report = reports.borrow_and_update().clone();
        let done = match &report {
            Report::Nothing => Ok(()),
            Report::Status(status) => write(&api, &pod, &mut known, status).await,
            Report::Gone(status) => match write(&api, &pod, &mut known, status).await {
                Ok(()) => delete(&api, &pod).await,
                Err(error) => Err(error),
            },
        };
        match done {
            Ok(()) if matches!(report, Report::Gone(_)) => return,
            Ok(()) => {
                wait = RETRY.0;
                // Cancel-safe: a change that is not taken here is still unseen the next time.
                let told = tokio::select! {
                    told = reports.changed() => told,
                    told = orders.changed() => told,
                };
                if told.is_err() {
                    return;
                }
            }
            Err(error) if is_gone(&error) => return,
            Err(error) => {
                tracing::warn!(pod = pod.name, namespace = pod.namespace, %error, "the pod's status was not taken; trying again");
                // A newer report is no reason to wait less, but its sender's end is one to stop.
                let end = async { while reports.changed().await.is_ok() {} };
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = end => return,
                }
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

async fn write(
    api: &Api<Pod>,
    pod: &PodRef,
    known: &mut Known,
    status: &Arc<PodStatus>,
) -> Result<(), kube::Error> {
    if known.status == *status {
        return Ok(());
    }
    let patch = patch(pod, status);
    let written = api
        .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    known.status.clone_from(status);
    known.version = version(&written);
    Ok(())
}

/// The uid makes the patch fail on a pod of the same name that came after this one.
pub(super) fn patch(pod: &PodRef, status: &PodStatus) -> Value {
    let mut status = json!(status);
    // A patch says by null what is no more.
    nulls(&mut status, &["reason", "message", "podIP", "podIPs"]);
    // Conditions and addresses are merged by their keys: those of others stay, and so would what these had before.
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        nulls(condition, &["reason", "message"]);
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        let is_gone = |kind: &&str| !conditions.iter().any(|it| it["type"] == **kind);
        let gone: Vec<&str> = PASSING.into_iter().filter(is_gone).collect();
        conditions.extend(
            gone.iter()
                .map(|kind| json!({"type": kind, "$patch": "delete"})),
        );
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
    api.delete(&pod.name, &params).await.map(drop)
}

/// Whether the API has the pod no more: none of that name, or another one.
fn is_gone(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    match status.code {
        404 => true,
        // Any other conflict is with somebody who wrote at the same time.
        409 => status.message.contains("UID"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    use super::*;

    fn pod(version: u64, ready: &str) -> Pod {
        let object = json!({
            "metadata": {"name": "p", "resourceVersion": version.to_string()},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_readiness_that_somebody_took_back_is_noticed_by_its_version() {
        let known = Known::of(Some(&pod(10, "True")));
        assert!(known.is_overwritten(&pod(11, "False")));
        assert!(
            !known.is_overwritten(&pod(9, "False")),
            "from before it was told"
        );
        assert!(!known.is_overwritten(&pod(11, "True")));
        let unready = Known::of(Some(&pod(10, "False")));
        assert!(!unready.is_overwritten(&pod(11, "False")));
    }

    #[test]
    fn another_pod_of_the_name_ends_the_reports_and_a_conflict_does_not() {
        let error = |code, message: &str| {
            let status = kube::core::Status::failure(message, "Conflict").with_code(code);
            is_gone(&kube::Error::Api(Box::new(status)))
        };
        let other = "Precondition failed: UID in precondition: a, UID in object meta: b";
        assert!(error(409, other));
        assert!(!error(409, "the object has been modified"));
        assert!(error(404, "not found"));
        assert!(!error(503, "away"));
    }

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
            patch["status"]["conditions"],
            json!([
                {"type": "Ready", "status": "True", "reason": null, "message": null},
                {"type": "PodResizePending", "$patch": "delete"},
                {"type": "PodResizeInProgress", "$patch": "delete"},
            ])
        );
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{"ip": "10.244.0.2"}, {"$patch": "replace"}])
        );
    }
}
