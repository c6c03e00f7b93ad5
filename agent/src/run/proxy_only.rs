//! `kernelet run --proxy-only`: in the place of kube-proxy, on a node whose pods another kubelet runs.
//!
//! It reads Services, EndpointSlices and Nodes, and writes nothing but Events about Services. It answers where kube-proxy
//! does: metrics for the node itself, health for load balancers.

use std::path::Path;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tracing::info;

use super::services::Services;
use super::{Parts, RunError, introspect, outcome, text, told_to_end, unfailing};
use crate::cluster::Cluster;
use crate::config::AgentConfig;
use crate::dataplane;
use crate::node::credentials::NodeClient;
use crate::node::follow::follow;
use crate::pod::PodTable;
use crate::server::as_proxy::{self, health_api, metrics_api};

/// Where container runtimes pin the network namespaces of their pods.
const NAMESPACES: &str = "/run/netns";

/// Runs until a signal ends it. What it left in the kernel goes on serving.
pub(super) async fn run(config: AgentConfig, socket: UnixListener) -> Result<(), RunError> {
    let probe = dataplane::probe(config.cgroup_root.as_deref())?;
    let node_client = NodeClient::load(&config.kubeconfig()).await?;
    let client = node_client.client();
    // Before anything is put into the kernel: what may fail because of others leaves nothing there.
    let metrics = listen("metrics", config.metrics_bind_address).await?;
    let healthz = listen("health checks", config.healthz_bind_address).await?;

    let (node, cluster) = (config.node_name().into(), Cluster::default());
    let mut registry = Registry::default();
    let mut parts = Parts::new();
    let services = Services {
        config: &config,
        node: &node,
        cluster: &cluster,
        // Without, each link's first one counts as the node's.
        addresses: config.node_ip.as_ref().map_or(&[], |ips| &ips.0),
        namespaces: Path::new(NAMESPACES).to_owned(),
    };
    // Pods are another kubelet's, and so are their host ports.
    cluster.update(|view| view.set_host_ports_known().into_iter().collect());
    let (introspection, ..) = services.start(
        probe,
        &client,
        PodTable::default(),
        &mut registry,
        &mut parts,
    )?;
    let proxy = introspection.proxy().clone();
    parts.spawn(introspect(introspection, socket));
    parts.spawn(unfailing(follow(node_client)));
    let registry = Arc::new(registry);
    let shown = move || text(&registry);
    parts.spawn(unfailing(as_proxy::serve(metrics, metrics_api(shown))));
    parts.spawn(unfailing(as_proxy::serve(healthz, health_api(proxy))));
    info!(node = %node, "services are routed; nothing else is done here");
    tokio::select! {
        ended = parts.join_next() => outcome(ended),
        signal = told_to_end() => signal.map_err(RunError::Signal),
    }
}

async fn listen(
    what: &'static str,
    address: std::net::SocketAddr,
) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RunError::ListenAsProxy {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;

    use crate::cluster::Cluster;

    /// An API server with nothing in it, which writes down what it is asked.
    fn recorder() -> (kube::Client, Arc<Mutex<BTreeSet<String>>>) {
        let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let heard = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri();
            let watch = uri
                .query()
                .is_some_and(|query| query.contains("watch=true"));
            let verb = if watch {
                "WATCH"
            } else {
                request.method().as_str()
            };
            let line = format!("{verb} {}", uri.path());
            heard.lock().unwrap().insert(line);
            async move {
                if watch {
                    std::future::pending::<()>().await;
                }
                let list = r#"{"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}"#;
                Ok::<_, Infallible>(Response::new(Body::from(list.as_bytes().to_vec())))
            }
        });
        (kube::Client::new(service, "default"), asked)
    }

    #[tokio::test]
    async fn the_api_server_is_asked_for_what_kube_proxy_may_read_and_nothing_else() {
        let (client, asked) = recorder();
        let watches = Cluster::default()
            .watches(&client)
            .map(|watch| tokio::spawn(watch));
        let kinds = [
            "/api/v1/nodes",
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
        ];
        let expected: BTreeSet<String> = kinds
            .iter()
            .flat_map(|path| [format!("GET {path}"), format!("WATCH {path}")])
            .collect();
        for _ in 0..500 {
            if *asked.lock().unwrap() == expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*asked.lock().unwrap(), expected);
        for watch in watches {
            watch.abort();
        }
    }
}
