//! The pods of the node, and how it is configured, as a kubelet tells them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::https::KubeletApi;

/// Every pod of the node in full.
pub(super) async fn pods(State(api): State<KubeletApi>) -> Response {
    let items = api.pods.objects();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
        .into_response()
}

/// The pods of which something runs, with the containers that do.
pub(super) async fn running_pods(State(api): State<KubeletApi>) -> Response {
    let items: Vec<_> = api
        .pods
        .list()
        .iter()
        .filter_map(|pod| {
            let running = pod.containers.iter().filter(|container| container.state == "running");
            let containers: Vec<_> = running
                .map(|container| json!({"name": container.name, "image": container.image, "resources": {}}))
                .collect();
            let metadata = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid});
            (!containers.is_empty())
                .then(|| json!({"metadata": metadata, "spec": {"containers": containers}, "status": {}}))
        })
        .collect();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
        .into_response()
}

/// What the agent was told, in the words of a kubelet's configuration file.
pub(super) async fn configz(State(api): State<KubeletApi>) -> Response {
    axum::Json(json!({"kubeletconfig": &*api.configz})).into_response()
}
