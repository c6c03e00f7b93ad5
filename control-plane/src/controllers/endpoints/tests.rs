//! Slices and Endpoints from Services and pods.

mod near;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Pod, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::Api;
use proptest::prelude::*;

use super::backends::{Backend, Family, backends, families};
use super::slices::{Plan, plan};
use super::{legacy, matters, perform};
use crate::controllers::cache::{Cache, READ_OWN_WRITE};
use crate::controllers::testing::{PodBuilder, pod};

fn service() -> Service {
    let mut service = Service {
        spec: Some(ServiceSpec {
            selector: Some([("app".to_owned(), "web".to_owned())].into()),
            ports: Some(vec![ServicePort {
                port: 80,
                target_port: Some(IntOrString::Int(8080)),
                ..Default::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    service.metadata.name = Some("web".into());
    service.metadata.namespace = Some("default".into());
    service.metadata.uid = Some("uid-web".into());
    service
}

fn web(name: &str, ip: &str) -> PodBuilder {
    pod(name).label("app", "web").ip(ip).on("n1")
}

fn pods(pods: Vec<PodBuilder>) -> Vec<Arc<Pod>> {
    pods.into_iter().map(|pod| Arc::new(pod.build())).collect()
}

fn found(service: &Service, pods: &[Arc<Pod>]) -> Vec<(Family, Vec<Backend>)> {
    families(service)
        .into_iter()
        .map(|family| (family, backends(service, pods, family)))
        .collect()
}

fn zone_of(node: &str) -> Option<String> {
    Some(format!("zone-of-{node}"))
}

/// The slices as the API server has them.
#[derive(Default)]
struct Store {
    slices: BTreeMap<String, EndpointSlice>,
    created: usize,
}

impl Store {
    fn reconcile(&mut self, service: &Service, pods: &[Arc<Pod>]) -> Plan {
        let existing: Vec<Arc<EndpointSlice>> =
            self.slices.values().cloned().map(Arc::new).collect();
        let plan = plan(service, &found(service, pods), zone_of, &existing);
        for slice in &plan.create {
            self.created += 1;
            let name = format!("web-{:03}", self.created);
            let mut slice = slice.clone();
            slice.metadata.name = Some(name.clone());
            self.slices.insert(name, slice);
        }
        for slice in &plan.update {
            self.slices
                .insert(slice.metadata.name.clone().unwrap(), slice.clone());
        }
        for name in &plan.delete {
            self.slices.remove(name).unwrap();
        }
        plan
    }

    fn addresses(&self) -> Vec<String> {
        let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
        let mut all: Vec<String> = endpoints
            .flat_map(|endpoint| endpoint.addresses.clone())
            .collect();
        all.sort();
        all
    }
}

#[test]
fn an_endpoint_says_who_where_and_how_it_is() {
    let pods = pods(vec![
        web("a", "10.0.0.1").ready_at(1),
        web("b", "10.0.0.2").phase("Running"),
        web("c", "10.0.0.3").ready_at(1).terminating(),
        web("d", "10.0.0.4").phase("Succeeded"),
        pod("e").label("app", "other").ip("10.0.0.5"),
        pod("f").label("app", "web"),
    ]);
    let mut store = Store::default();
    store.reconcile(&service(), &pods);
    let slice = store.slices.values().next().unwrap();
    let states: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            (
                endpoint.addresses[0].as_str(),
                conditions.ready,
                conditions.serving,
                conditions.terminating,
            )
        })
        .collect();
    assert_eq!(
        states,
        [
            ("10.0.0.1", Some(true), Some(true), Some(false)),
            ("10.0.0.2", Some(false), Some(false), Some(false)),
            ("10.0.0.3", Some(false), Some(true), Some(true)),
        ]
    );
    let first = &slice.endpoints[0];
    assert_eq!(
        (first.node_name.as_deref(), first.zone.as_deref()),
        (Some("n1"), Some("zone-of-n1"))
    );
    assert_eq!(
        first.target_ref.as_ref().unwrap().uid.as_deref(),
        Some("uid-a")
    );
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(
        slice.metadata.owner_references.as_ref().unwrap()[0].uid,
        "uid-web"
    );
}

#[test]
fn a_named_port_is_looked_up_in_each_pod() {
    let named = |number| {
        move |pod: &mut Pod| {
            pod.spec.as_mut().unwrap().containers = vec![Container {
                ports: Some(vec![ContainerPort {
                    name: Some("http".into()),
                    container_port: number,
                    ..Default::default()
                }]),
                ..Container::default()
            }];
        }
    };
    let mut service = service();
    service.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].target_port =
        Some(IntOrString::String("http".into()));
    let pods = pods(vec![
        web("a", "10.0.0.1").with(named(8000)),
        web("b", "10.0.0.2").with(named(9000)),
    ]);
    let mut store = Store::default();
    store.reconcile(&service, &pods);
    let ports: BTreeSet<i32> = store
        .slices
        .values()
        .map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap())
        .collect();
    assert_eq!(ports, BTreeSet::from([8000, 9000]));
}

#[test]
fn a_hostname_counts_only_in_the_services_subdomain() {
    let hosted = |subdomain: &'static str| {
        move |pod: &mut Pod| {
            let spec = pod.spec.as_mut().unwrap();
            (spec.hostname, spec.subdomain) = (Some("db-0".into()), Some(subdomain.into()));
        }
    };
    let pods = pods(vec![
        web("a", "10.0.0.1").with(hosted("web")),
        web("b", "10.0.0.2").with(hosted("else")),
    ]);
    let backends = backends(&service(), &pods, Family::V4);
    assert_eq!(backends[0].hostname.as_deref(), Some("db-0"));
    assert_eq!(backends[1].hostname, None);
}

#[test]
fn publish_not_ready_addresses_makes_all_ready() {
    let mut service = service();
    service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    let pods = pods(vec![
        web("a", "10.0.0.1"),
        web("b", "10.0.0.2").ready_at(1).terminating(),
    ]);
    let backends = backends(&service, &pods, Family::V4);
    assert!(backends.iter().all(|backend| backend.ready));
    assert_eq!(
        legacy::desired(&service, &backends, None).subsets.unwrap()[0]
            .addresses
            .as_ref()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn nobody_is_one_empty_slice_and_a_second_look_writes_nothing() {
    let mut store = Store::default();
    store.reconcile(&service(), &[]);
    assert_eq!(store.slices.len(), 1);
    let plan = store.reconcile(&service(), &[]);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    store.reconcile(&service(), &pods(vec![web("a", "10.0.0.1").ready_at(1)]));
    assert_eq!(
        (store.slices.len(), store.addresses()),
        (1, vec!["10.0.0.1".to_owned()])
    );
    store.reconcile(&service(), &[]);
    assert_eq!((store.slices.len(), store.addresses().len()), (1, 0));
}

#[test]
fn a_service_made_again_gets_slices_of_its_own() {
    let pods = pods(vec![web("a", "10.0.0.1").ready_at(1)]);
    let mut store = Store::default();
    store.reconcile(&service(), &pods);
    let mut again = service();
    again.metadata.uid = Some("uid-again".into());
    let plan = store.reconcile(&again, &pods);
    assert_eq!((plan.create.len(), plan.delete.len()), (1, 1));
    assert_eq!(store.addresses(), ["10.0.0.1"]);
    let plan = store.reconcile(&again, &pods);
    assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
}

#[test]
fn one_change_in_a_large_service_writes_one_slice() {
    let named = |n: usize| {
        web(
            &format!("p{n:04}"),
            &format!("10.0.{}.{}", n / 250, n % 250),
        )
        .ready_at(1)
    };
    let mut store = Store::default();
    store.reconcile(&service(), &pods((0..350).map(named).collect()));
    assert_eq!(store.slices.len(), 4);
    let one_unready = (0..350).map(|n| {
        if n == 120 {
            named(n).with(|pod| pod.status.as_mut().unwrap().conditions = None)
        } else {
            named(n)
        }
    });
    let plan = store.reconcile(&service(), &pods(one_unready.collect()));
    assert_eq!(
        (plan.create.len(), plan.update.len(), plan.delete.len()),
        (0, 1, 0)
    );
}

#[tokio::test]
async fn what_was_written_before_a_failure_is_waited_for() {
    let server = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let body = request.into_body().collect_bytes().await?;
        let slice: EndpointSlice = serde_json::from_slice(&body).unwrap();
        let code = match slice.metadata.name.as_deref() {
            Some("written") => 201,
            _ => 500,
        };
        let mut response = http::Response::new(axum::body::Body::from(body));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
        Ok::<_, kube::Error>(response)
    });
    let api = Api::namespaced(kube::Client::new(server, "default"), "default");
    let named = |name: &str| {
        let mut slice = EndpointSlice::default();
        slice.metadata.name = Some(name.to_owned());
        slice
    };
    let cache = Cache::<EndpointSlice>::new(|_| (), None);
    let plan = Plan {
        create: ["written", "refused"].map(named).into(),
        ..Plan::default()
    };
    let start = std::time::Instant::now();
    assert!(perform(&api, &cache, &plan).await.is_err());
    // Nobody feeds the cache, so the wait goes on as long as it may.
    assert!(start.elapsed() >= READ_OWN_WRITE);
}

#[test]
fn a_heartbeat_of_a_pod_wakes_nobody() {
    let old = web("a", "10.0.0.1").ready_at(1).build();
    let mut new = old.clone();
    new.metadata.annotations = Some([("seen".to_owned(), "now".to_owned())].into());
    assert!(!matters(&old, &new));
    assert!(matters(&old, &web("a", "10.0.0.1").build()));
}

#[test]
fn legacy_endpoints_list_ready_and_not_ready_apart_and_omit_terminating() {
    let pods = pods(vec![
        web("a", "10.0.0.1").ready_at(1),
        web("b", "10.0.0.2").phase("Running"),
        web("c", "10.0.0.3").ready_at(1).terminating(),
    ]);
    let endpoints = legacy::desired(&service(), &backends(&service(), &pods, Family::V4), None);
    let subset = &endpoints.subsets.unwrap()[0];
    assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
    assert_eq!(
        subset.not_ready_addresses.as_ref().unwrap()[0].ip,
        "10.0.0.2"
    );
    assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
}

proptest! {
    #[test]
    fn slices_say_what_is_true_and_stay_when_nothing_changes(history in prop::collection::vec(prop::collection::btree_set(0u8..250, 0..240), 1..6)) {
        let mut store = Store::default();
        for alive in history {
            let pods = pods(alive.iter().map(|n| web(&format!("p{n}"), &format!("10.0.0.{n}")).ready_at(1)).collect());
            store.reconcile(&service(), &pods);
            let mut expected: Vec<String> = alive.iter().map(|n| format!("10.0.0.{n}")).collect();
            expected.sort();
            prop_assert_eq!(store.addresses(), expected);
            prop_assert!(store.slices.values().all(|slice| slice.endpoints.len() <= 100));
            let again = store.reconcile(&service(), &pods);
            prop_assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        }
    }
}
