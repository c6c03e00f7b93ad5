//! The variables by which containers find services without DNS: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT` and the older ones
//! in the form of Docker's links.

use std::net::SocketAddr;
use std::time::Duration;

use super::spec::PodView;
use crate::cluster::{Change, Cluster, ObjectKey, Service, View};

/// Client libraries find the API server by the variables of this service, so every pod has them.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// How long a container waits for the first list of services: it will not see those that come later.
const PATIENCE: Duration = Duration::from_secs(5);

/// The variables for the pod's containers.
pub(super) async fn of(cluster: &Cluster, pod: &PodView) -> Vec<(String, String)> {
    if !cluster.view().synced {
        // Without the API server a container is better started without them than not at all.
        let _ = tokio::time::timeout(PATIENCE, synced(cluster)).await;
    }
    let links = pod.spec().enable_service_links.unwrap_or(true);
    variables(&cluster.view(), &pod.id.namespace, links)
}

async fn synced(cluster: &Cluster) {
    let mut changes = cluster.subscribe();
    while !changes.next().await.contains_key(&Change::Synced) {}
}

/// The API server's variables, and with `links` those of the namespace's services. Pure.
fn variables(view: &View, namespace: &str, links: bool) -> Vec<(String, String)> {
    let api_server = ObjectKey::new(API_SERVER.0, API_SERVER.1);
    let first = ObjectKey::new(namespace, "");
    let own = view
        .services
        .range(first..)
        .take_while(|(key, _)| &*key.namespace == namespace)
        .filter(|(key, _)| links && **key != api_server);
    let own: Vec<_> = own.collect();
    // A service of the same name in the pod's own namespace takes the API server's place.
    let hidden = own.iter().any(|(key, _)| *key.name == *API_SERVER.1);
    let api_server = view.services.get_key_value(&api_server).filter(|_| !hidden);
    let mut found = Vec::new();
    for (key, service) in api_server.into_iter().chain(own) {
        add(&mut found, &key.name, service);
    }
    found
}

fn add(variables: &mut Vec<(String, String)>, name: &str, service: &Service) {
    // Without an address of its own, or without ports, there is nothing to name.
    let (Some(address), Some(first)) = (service.cluster_ips.first(), service.ports.first()) else {
        return;
    };
    let name = variable_name(name);
    let mut put =
        |suffix: String, value: String| variables.push((format!("{name}_{suffix}"), value));
    put("SERVICE_HOST".into(), address.to_string());
    put("SERVICE_PORT".into(), first.port.to_string());
    for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
        let suffix = format!("SERVICE_PORT_{}", variable_name(&port.name));
        put(suffix, port.port.to_string());
    }
    for (at, port) in service.ports.iter().enumerate() {
        let upper = port.protocol.to_string();
        let lower = upper.to_lowercase();
        let url = format!("{lower}://{}", SocketAddr::new(*address, port.port));
        if at == 0 {
            put("PORT".into(), url.clone());
        }
        let link = format!("PORT_{}_{upper}", port.port);
        put(link.clone(), url);
        put(format!("{link}_PROTO"), lower);
        put(format!("{link}_PORT"), port.port.to_string());
        put(format!("{link}_ADDR"), address.to_string());
    }
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Protocol, ServicePort};

    fn view() -> View {
        let mut view = View::default();
        let mut put = |namespace: &str, name: &str, address: &str, ports: &[(&str, u16)]| {
            let ports = ports.iter().map(|(name, port)| ServicePort {
                name: (*name).into(),
                protocol: Protocol::Tcp,
                port: *port,
                node_port: None,
            });
            let service = Service {
                cluster_ips: address.parse().into_iter().collect(),
                ports: ports.collect(),
                ..Service::default()
            };
            view.set_service(ObjectKey::new(namespace, name), Some(service));
        };
        put("default", "kubernetes", "10.96.0.1", &[("https", 443)]);
        put("default", "other", "10.96.0.2", &[("", 80)]);
        put(
            "shop",
            "back-end",
            "10.96.0.3",
            &[("http", 80), ("m-x", 9090)],
        );
        put("shop", "headless", "None", &[("", 80)]);
        put("shops", "neighbour", "10.96.0.4", &[("", 80)]);
        view
    }

    fn text(view: &View, namespace: &str, links: bool) -> Vec<String> {
        variables(view, namespace, links)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }

    const API: [&str; 8] = [
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_PORT_443_TCP_PORT=443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
    ];

    #[test]
    fn the_api_server_is_always_named() {
        assert_eq!(text(&view(), "shop", false), API);
        assert_eq!(text(&view(), "default", false), API);
        assert_eq!(text(&view(), "empty", true), API);
        assert_eq!(text(&View::default(), "shop", true), [""; 0]);
    }

    #[test]
    fn the_services_of_the_namespace_are_named_as_upstream_does() {
        let all = text(&view(), "shop", true);
        assert_eq!(all[..8], API);
        assert_eq!(
            all[8..],
            [
                "BACK_END_SERVICE_HOST=10.96.0.3",
                "BACK_END_SERVICE_PORT=80",
                "BACK_END_SERVICE_PORT_HTTP=80",
                "BACK_END_SERVICE_PORT_M_X=9090",
                "BACK_END_PORT=tcp://10.96.0.3:80",
                "BACK_END_PORT_80_TCP=tcp://10.96.0.3:80",
                "BACK_END_PORT_80_TCP_PROTO=tcp",
                "BACK_END_PORT_80_TCP_PORT=80",
                "BACK_END_PORT_80_TCP_ADDR=10.96.0.3",
                "BACK_END_PORT_9090_TCP=tcp://10.96.0.3:9090",
                "BACK_END_PORT_9090_TCP_PROTO=tcp",
                "BACK_END_PORT_9090_TCP_PORT=9090",
                "BACK_END_PORT_9090_TCP_ADDR=10.96.0.3",
            ]
        );
        let default = text(&view(), "default", true);
        assert!(default.contains(&"OTHER_SERVICE_HOST=10.96.0.2".to_owned()));
        let hosts = |line: &&String| line.starts_with("KUBERNETES_SERVICE_HOST");
        assert_eq!(default.iter().filter(hosts).count(), 1);
    }
}
