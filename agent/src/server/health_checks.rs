//! Health checks of services with `externalTrafficPolicy: Local`: a load balancer asks each node at the service's
//! `healthCheckNodePort` whether it has ready endpoints, and sends its clients to those that have.
//!
//! Which ports to listen at is pure; the listeners are started and ended as the view has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::as_proxy;
use crate::cluster::{Change, Changes, Cluster, Name, ObjectKey, View};
use crate::events::{Events, Kind, Subject};
use crate::proxy::ProxyHandle;

/// Changes come in bursts: one look after them is enough.
const SETTLE: Duration = Duration::from_millis(100);
/// Until a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps waiting.
const BACKLOG: i32 = 128;
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is answered at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    service: ObjectKey,
    uid: Option<uuid::Uuid>,
    /// Ready endpoints on this node.
    local: usize,
}

/// The checks by port. Of two services that say the same port, the first counts.
fn checks(view: &View, node: &str) -> BTreeMap<u16, Check> {
    let mut all = BTreeMap::new();
    for (key, service) in &view.services {
        let exposed = service.exposed.as_deref();
        let port = exposed.and_then(|exposed| exposed.health_check_node_port);
        let ours = service.proxy_name.is_none() && !service.not_for_proxies && !service.headless;
        if let Some(port) = port.filter(|_| ours) {
            all.entry(port).or_insert_with(|| Check {
                service: key.clone(),
                uid: service.uid,
                local: ready_on(view, node, key),
            });
        }
    }
    all
}

/// How many ready endpoints are on the node. One that has addresses of both families counts once.
fn ready_on(view: &View, node: &str, service: &ObjectKey) -> usize {
    let publish = |key| {
        view.services
            .get(key)
            .is_some_and(|it| it.publish_not_ready)
    };
    let publish_not_ready = publish(service);
    let mut ready: [BTreeSet<IpAddr>; 2] = Default::default();
    let slices = view.slices_for(service).filter(|it| !it.not_for_proxies);
    for endpoint in slices.flat_map(|slice| &slice.endpoints) {
        let here = endpoint.node.as_deref() == Some(node);
        if here
            && (endpoint.ready || publish_not_ready)
            && let Some(ip) = endpoint.addresses.first()
        {
            ready[usize::from(ip.is_ipv6())].insert(*ip);
        }
    }
    let [four, six] = ready;
    four.len().max(six.len())
}

/// One port that is listened at.
struct Listening {
    service: ObjectKey,
    local: Arc<AtomicUsize>,
    server: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The listeners, and what keeps others from being there.
struct HealthChecks {
    proxy: ProxyHandle,
    events: Events,
    listening: BTreeMap<u16, Listening>,
    /// Ports that could not be had, and for whom that was told.
    refused: BTreeMap<u16, ObjectKey>,
}

/// Answers the health checks until the process ends.
pub async fn run(cluster: Cluster, node: Name, proxy: ProxyHandle, events: Events) {
    let mut changes = cluster.subscribe();
    let mut checks = HealthChecks {
        proxy,
        events,
        listening: BTreeMap::new(),
        refused: BTreeMap::new(),
    };
    let mut retry = Instant::now() + RETRY;
    loop {
        // Both arms may be dropped: each pass reads the whole view.
        tokio::select! {
            () = service_change(&mut changes) => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep_until(retry) => {}
        }
        let wanted = {
            let view = cluster.view();
            // Nothing is taken away on a partial view.
            view.synced.then(|| self::checks(&view, &node))
        };
        if let Some(wanted) = wanted {
            checks.pass(wanted);
        }
        retry = Instant::now() + RETRY;
    }
}

async fn service_change(changes: &mut Changes) {
    loop {
        let pending = changes.next().await;
        let concerns = |change: &Change| !matches!(change, Change::Node(_));
        if pending.keys().any(concerns) {
            return;
        }
    }
}

impl HealthChecks {
    fn pass(&mut self, wanted: BTreeMap<u16, Check>) {
        let stays = |port: &u16, it: &mut Listening| {
            let check = wanted.get(port);
            check.is_some_and(|check| check.service == it.service)
        };
        self.listening.retain(stays);
        self.refused.retain(|port, _| wanted.contains_key(port));
        for (port, check) in wanted {
            if let Some(listening) = self.listening.get(&port) {
                listening.local.store(check.local, Ordering::Relaxed);
                continue;
            }
            match self.listen(port, &check) {
                Ok(listening) => {
                    info!(service = %check.service, port, "answers the service's health check");
                    self.refused.remove(&port);
                    self.listening.insert(port, listening);
                }
                Err(error) => self.tell(port, check, &error),
            }
        }
    }

    fn listen(&self, port: u16, check: &Check) -> io::Result<Listening> {
        let listener = bind(port)?;
        let local = Arc::new(AtomicUsize::new(check.local));
        let answers = router(check.service.clone(), local.clone(), self.proxy.clone());
        let server = tokio::spawn(as_proxy::serve(listener, answers));
        Ok(Listening {
            service: check.service.clone(),
            local,
            server: server.abort_handle(),
        })
    }

    /// Once for each service: it is tried again and again.
    fn tell(&mut self, port: u16, check: Check, error: &io::Error) {
        let Check { service, uid, .. } = check;
        if self.refused.insert(port, service.clone()).as_ref() == Some(&service) {
            return;
        }
        let reason = "FailedToStartServiceHealthcheck";
        let message = format!("cannot listen at healthCheckNodePort {port}: {error}; trying again");
        warn!(%service, reason, message, "load balancers cannot ask for a service's health");
        let subject = Subject {
            kind: "Service",
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            uid: uid.map(|uid| uid.to_string()).unwrap_or_default(),
        };
        self.events
            .send(subject, None, Kind::Warning, reason, message);
    }
}

/// At every address of the node, of both families where it has both.
fn bind(port: u16) -> io::Result<TcpListener> {
    let six = Socket::new(Domain::IPV6, Type::STREAM, None);
    let (socket, any) = match six {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            (socket, Ipv6Addr::UNSPECIFIED.into())
        }
        Err(_) => {
            let four = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            (four, Ipv4Addr::UNSPECIFIED.into())
        }
    };
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Any path is answered, as by kube-proxy.
fn router(service: ObjectKey, local: Arc<AtomicUsize>, proxy: ProxyHandle) -> Router {
    Router::new().fallback(move || {
        let local = local.load(Ordering::Relaxed);
        let answer = answer(&service, local, as_proxy::is_well(&proxy));
        std::future::ready(answer)
    })
}

/// In kube-proxy's form, which load balancers' controllers read.
fn answer(service: &ObjectKey, local: usize, healthy: bool) -> Response {
    let code = match local > 0 && healthy {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = json!({
        "service": {"namespace": &*service.namespace, "name": &*service.name},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    });
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, local.to_string()),
    ];
    (code, headers, text.to_string()).into_response()
}

#[cfg(test)]
#[path = "health_checks_tests.rs"]
mod tests;
