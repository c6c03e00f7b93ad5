//! Mirror pods: by them the API shows the pods that come from files of a node. Whatever becomes of a mirror, its pod goes on.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::watch;

use super::report::{Report, patch};
use super::shared::Order;
use super::spec::{CONFIG_HASH, CONFIG_MIRROR, PodView};
use crate::runtime::PodRef;

/// The shortest and the longest wait before another attempt.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A creation is heard of within this, or is looked at again.
const HEARD: Duration = Duration::from_secs(5);

/// A mirror pod as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) id: PodRef,
    /// Whose mirror it is.
    hash: String,
    is_being_deleted: bool,
}

impl Mirror {
    /// `None` for a pod that is no mirror.
    pub(super) fn of(pod: &PodView) -> Option<Mirror> {
        let annotations = pod.object.metadata.annotations.as_ref()?;
        Some(Mirror {
            id: pod.id.clone(),
            hash: annotations.get(CONFIG_MIRROR)?.clone(),
            is_being_deleted: pod.is_being_deleted(),
        })
    }
}

/// What is to be done so that the API shows a pod.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Create,
    /// It is of an earlier pod, or somebody deletes it: it goes, and then there is a new one.
    Delete(&'a PodRef),
    Tell(&'a PodRef),
}

fn step<'a>(pod: &PodView, mirror: Option<&'a Mirror>) -> Step<'a> {
    match mirror {
        None => Step::Create,
        Some(mirror) if mirror.is_being_deleted || mirror.hash != pod.id.uid => {
            Step::Delete(&mirror.id)
        }
        Some(mirror) => Step::Tell(&mirror.id),
    }
}

/// The mirror to create, which belongs to the node: API servers take no other from it, and it goes with the Node. The API
/// server gives it a uid of its own.
fn mirror(pod: &PodView, node: &ObjectMeta) -> Pod {
    let mut mirror = pod.object.clone();
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(CONFIG_HASH).cloned();
    let hash = hash.unwrap_or_else(|| pod.id.uid.clone());
    annotations.insert(CONFIG_MIRROR.to_owned(), hash);
    mirror.metadata.uid = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name.clone().unwrap_or_default(),
        uid: node.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    mirror
}

/// Keeps a mirror of the pod in the API, with its status, until the pod is gone from the node or the sender is.
pub(super) async fn run(
    client: Client,
    pod: PodRef,
    mut reports: watch::Receiver<Report>,
    mut orders: watch::Receiver<Order>,
) {
    let nodes = Api::<Node>::all(client.clone());
    let api = Api::<Pod>::namespaced(client, &pod.namespace);
    let mut told: Option<(PodRef, Report)> = None;
    let mut wait = RETRY.0;
    loop {
        let order = orders.borrow_and_update().clone();
        let report = reports.borrow_and_update().clone();
        let (Some(view), known) = (&order.pod, order.mirror.as_ref()) else {
            return;
        };
        // A creation, or a deletion, is heard of by the watch of pods.
        let mut patience = HEARD;
        let done = match (&report, step(view, known)) {
            (Report::Nothing, _) => Ok(()),
            (Report::Gone(_), _) => {
                // Its successor, which waits for this to end, does not wait for the API.
                if let Some(known) = known {
                    tokio::spawn(see_off(api, known.id.clone()));
                }
                return;
            }
            (_, Step::Delete(id)) => delete(&api, id).await,
            (_, Step::Create) => create(&api, &nodes, view).await,
            (Report::Status(status), Step::Tell(id)) => {
                patience = Duration::MAX;
                let is_told = told
                    .as_ref()
                    .is_some_and(|(of, told)| of == id && *told == report);
                let written = match is_told {
                    true => Ok(()),
                    false => {
                        let patch = Patch::Strategic(patch(id, status));
                        let params = PatchParams::default();
                        api.patch_status(&id.name, &params, &patch).await.map(drop)
                    }
                };
                if written.is_ok() {
                    told = Some((id.clone(), report.clone()));
                }
                written
            }
        };
        if let Err(error) = done {
            tracing::warn!(pod = pod.name, namespace = pod.namespace, %error, "the mirror pod is not as it should be; trying again");
            patience = wait;
            wait = (wait * 2).min(RETRY.1);
        } else {
            wait = RETRY.0;
        }
        // Cancel-safe: a change that is not taken here is still unseen the next time.
        let heard = tokio::select! {
            heard = reports.changed() => heard,
            heard = orders.changed() => heard,
            () = pause(patience) => Ok(()),
        };
        if heard.is_err() {
            return;
        }
    }
}

async fn pause(time: Duration) {
    match time {
        Duration::MAX => std::future::pending().await,
        time => tokio::time::sleep(time).await,
    }
}

async fn create(api: &Api<Pod>, nodes: &Api<Node>, pod: &PodView) -> Result<(), kube::Error> {
    let node = pod.spec().node_name.as_deref().unwrap_or_default();
    let node = nodes.get_metadata(node).await?;
    let mirror = mirror(pod, &node.metadata);
    match api.create(&PostParams::default(), &mirror).await {
        // Heard of soon, if it is ours.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        done => done.map(drop),
    }
}

/// Deletes a mirror, however long the API server is away.
pub(super) async fn see_off(api: Api<Pod>, mirror: PodRef) {
    let mut wait = RETRY.0;
    while let Err(error) = delete(&api, &mirror).await {
        tracing::warn!(pod = mirror.name, namespace = mirror.namespace, %error, "a mirror pod stays; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Deletes a mirror at once: nothing of it runs. One that is gone already is no error.
async fn delete(api: &Api<Pod>, mirror: &PodRef) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(mirror.uid.clone()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match api.delete(&mirror.name, &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        done => done.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> PodView {
        let annotations = json!({CONFIG_HASH: "hash", "kubernetes.io/config.source": "file"});
        let object = json!({
            "metadata": {"name": "p-n", "namespace": "d", "uid": "hash", "annotations": annotations},
            "spec": {"containers": []},
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_mirror_is_told_replaced_or_made() {
        let pod = pod();
        let node = ObjectMeta {
            name: Some("n".into()),
            uid: Some("of-node".into()),
            ..ObjectMeta::default()
        };
        let mut object = mirror(&pod, &node);
        assert_eq!(object.metadata.uid, None);
        let owners = object.metadata.owner_references.as_ref().unwrap();
        assert_eq!((owners.len(), owners[0].uid.as_str()), (1, "of-node"));
        object.metadata.uid = Some("of-the-api".into());
        let view = PodView::new(object).unwrap();
        let seen = Mirror::of(&view).unwrap();
        assert_eq!(seen.hash, "hash");
        assert_eq!(Mirror::of(&pod), None);

        assert_eq!(step(&pod, None), Step::Create);
        assert_eq!(step(&pod, Some(&seen)), Step::Tell(&view.id));
        let deleted = Mirror {
            is_being_deleted: true,
            ..seen.clone()
        };
        assert_eq!(step(&pod, Some(&deleted)), Step::Delete(&view.id));
        let earlier = Mirror {
            hash: "before".into(),
            ..seen
        };
        assert_eq!(step(&pod, Some(&earlier)), Step::Delete(&view.id));
    }
}
