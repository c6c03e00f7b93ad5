//! Service: names, columns, defaults and what the server keeps.

mod addresses;
mod family;
mod update;
mod validation;

use k8s_openapi::{
    api::core::v1::{
        ClientIPConfig, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus,
        SessionAffinityConfig,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print,
    validate::{NameRule, names},
};

pub use addresses::errors as service_address_errors;
pub use family::Family;

/// Transport protocols that ports may have.
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const AFFINITY_SECONDS: i32 = 10_800;

impl Strategy for Service {
    const SINGULAR: &'static str = "service";
    const SHORT_NAMES: &'static [&'static str] = &["svc"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Proxy];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Type", "How the service is reached."),
        Column::text("Cluster-IP", "The address inside the cluster."),
        Column::text("External-IP", "Addresses from outside."),
        Column::text("Port(s)", "The ports, with their node ports."),
        Column::AGE,
        Column::text("Selector", "Which pods serve.").wide(),
    ];
    const RETURNS_DELETED_OBJECT: bool = true;
    const NAME_RULE: NameRule = names::dns1035_label;

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let first_ip = spec
            .cluster_ips
            .as_ref()
            .and_then(|ips| ips.first())
            .or(spec.cluster_ip.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(spec.type_.as_deref().unwrap_or_default()),
            json!(print::or_none(first_ip.map(String::as_str))),
            json!(external_ip(self, &spec)),
            json!(ports(&spec)),
            json!(age::of(&self.metadata, now)),
            json!(print::labels(spec.selector.as_ref())),
        ]
    }

    fn set_defaults(&mut self) {
        set_defaults(self.spec.get_or_insert_default());
    }

    fn prepare_create(&mut self) {
        self.status = Some(ServiceStatus {
            load_balancer: Some(LoadBalancerStatus::default()),
            conditions: None,
        });
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        if let (Some(new), Some(old)) = (&mut self.spec, &old.spec) {
            update::keep_allocated(new, old);
            update::drop_unused(new, old);
        }
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        validation::errors(
            &self.spec.clone().unwrap_or_default(),
            old.and_then(|old| old.spec.as_ref()),
        )
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.as_ref();
        vec![
            (
                "spec.clusterIP",
                spec.and_then(|spec| spec.cluster_ip.clone())
                    .unwrap_or_default(),
            ),
            (
                "spec.type",
                spec.and_then(|spec| spec.type_.clone()).unwrap_or_default(),
            ),
        ]
    }
}

fn kind(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or_default()
}

/// Whether the service has an address in the cluster at all.
fn has_cluster_ip(spec: &ServiceSpec) -> bool {
    kind(spec) != "ExternalName"
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn is_reached_from_outside(spec: &ServiceSpec) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
        || kind(spec) == "ClusterIP" && !spec.external_ips.as_deref().unwrap_or_default().is_empty()
}

fn set_defaults(spec: &mut ServiceSpec) {
    let text = |field: &mut Option<String>, default: &str| {
        if field.as_deref().unwrap_or_default().is_empty() {
            *field = Some(default.to_owned());
        }
    };
    text(&mut spec.type_, "ClusterIP");
    text(&mut spec.session_affinity, "None");
    match spec.session_affinity.as_deref() {
        Some("None") => spec.session_affinity_config = None,
        Some("ClientIP") => {
            let config = spec
                .session_affinity_config
                .get_or_insert_with(SessionAffinityConfig::default);
            let client = config.client_ip.get_or_insert_with(ClientIPConfig::default);
            client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        }
        _ => {}
    }
    for port in spec.ports.iter_mut().flatten() {
        text(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if is_reached_from_outside(spec) {
        text(&mut spec.external_traffic_policy, "Cluster");
    }
    if kind(spec) == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    if has_cluster_ip(spec) {
        text(&mut spec.internal_traffic_policy, "Cluster");
    }
}

fn external_ip(service: &Service, spec: &ServiceSpec) -> String {
    let own = spec.external_ips.as_deref().unwrap_or_default();
    match kind(spec) {
        "ExternalName" => spec.external_name.clone().unwrap_or_default(),
        "LoadBalancer" => {
            let balancer = service
                .status
                .as_ref()
                .and_then(|status| status.load_balancer.as_ref());
            let given = balancer
                .iter()
                .flat_map(|balancer| balancer.ingress.iter().flatten());
            let given =
                given.filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone()));
            let all: Vec<_> = given.chain(own.iter().cloned()).collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ => print::or_none(Some(&own.join(","))),
    }
}

/// `80:30080/TCP,53/UDP`
fn ports(spec: &ServiceSpec) -> String {
    let ports = spec.ports.iter().flatten().map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        match port.node_port.filter(|&node_port| node_port > 0) {
            Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
            None => format!("{}/{protocol}", port.port),
        }
    });
    print::or_none(Some(&ports.collect::<Vec<_>>().join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Service {
        let mut service: Service =
            serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap();
        service.set_defaults();
        service
    }

    #[test]
    fn a_plain_service_gets_what_upstream_gives_it() {
        assert_eq!(
            serde_json::to_value(
                service(json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] })).spec
            )
            .unwrap(),
            json!({
                "internalTrafficPolicy": "Cluster",
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }],
                "selector": { "app": "web" }, "sessionAffinity": "None", "type": "ClusterIP",
            })
        );
    }

    #[test]
    fn affinity_lasts_three_hours_and_outside_traffic_spreads() {
        let spec = service(
            json!({ "type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{ "port": 80 }] }),
        );
        let spec = serde_json::to_value(spec.spec).unwrap();
        assert_eq!(
            spec["sessionAffinityConfig"],
            json!({ "clientIP": { "timeoutSeconds": 10800 } })
        );
        assert_eq!(spec["externalTrafficPolicy"], "Cluster");
    }

    #[test]
    fn the_row_shows_addresses_and_ports() {
        let row = |spec: Value| service(spec).row(0);
        assert_eq!(
            row(
                json!({ "clusterIP": "10.96.0.10", "selector": { "a": "b" }, "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }] })
            ),
            [
                "web",
                "ClusterIP",
                "10.96.0.10",
                "<none>",
                "80/TCP,53/UDP",
                "<unknown>",
                "a=b"
            ]
        );
        let balanced =
            row(json!({ "type": "LoadBalancer", "ports": [{ "port": 80, "nodePort": 30080 }] }));
        assert_eq!(balanced[3], "<pending>");
        assert_eq!(balanced[4], "80:30080/TCP");
        let named = row(json!({ "type": "ExternalName", "externalName": "example.com" }));
        assert_eq!(&named[2..5], ["<none>", "example.com", "<none>"]);
    }
}
