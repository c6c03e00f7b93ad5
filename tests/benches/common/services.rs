//! Many services with hand-written EndpointSlices, so that no pod is needed.

use std::ops::Range;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;

/// How many requests are under way at once.
const CONCURRENCY: usize = 64;

/// Name of the service, and of its only slice.
pub fn name(number: u64) -> String {
    format!("service-{number}")
}

/// Address of one of a service's three endpoints. Nothing listens there, and nothing is sent there.
pub fn endpoint(number: u64, index: u64) -> String {
    let host = number * 3 + index;
    format!(
        "10.{}.{}.{}",
        128 + host / 62_500,
        host / 250 % 250,
        host % 250 + 1
    )
}

/// The number of a service of this name.
pub fn number(name: &str) -> Option<u64> {
    name.strip_prefix("service-")?.parse().ok()
}

/// Creates services x 3 endpoints.
pub async fn create(client: &Client, numbers: Range<u64>) {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let (services, slices) = (&services, &slices);
    futures::stream::iter(numbers)
        .for_each_concurrent(CONCURRENCY, |number| async move {
            let post = PostParams::default();
            services
                .create(&post, &service(number))
                .await
                .unwrap_or_else(|error| panic!("service {number}: {error}"));
            slices
                .create(&post, &slice(number, 0))
                .await
                .unwrap_or_else(|error| panic!("slice {number}: {error}"));
        })
        .await;
}

fn service(number: u64) -> Service {
    serde_json::from_value(json!({
        "metadata": { "name": name(number) },
        "spec": { "ports": [{ "port": 80, "targetPort": 8080 }] },
    }))
    .expect("a service")
}

/// The slice of a service. Another `variant` differs in its last endpoint.
pub fn slice(number: u64, variant: u64) -> EndpointSlice {
    let addresses = [
        endpoint(number, 0),
        endpoint(number, 1),
        endpoint(number, 2 + variant * 30_000),
    ];
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": "elsewhere" }))
        .collect();
    serde_json::from_value(json!({
        "metadata": { "name": name(number), "labels": { "kubernetes.io/service-name": name(number) } },
        "addressType": "IPv4",
        "ports": [{ "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    }))
    .expect("a slice")
}
