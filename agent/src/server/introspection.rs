//! The introspection API: what `kernelet status`, `service show` and the others ask, answered on a Unix socket that only
//! root can open.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::abi::ServiceKey;
use futures::Stream;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{Instant as Tick, sleep_until};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::{ComponentHealth, direct_return, present};
use crate::announce::Announcements;
use crate::chain::chain;
use crate::cluster::{Cluster, Name, ObjectKey};
use crate::dataplane::{Feature, Lookup, MapError, monotonic_ns, sockets_in};
use crate::introspection as api;
use crate::introspection::introspection_server::{Introspection as Api, IntrospectionServer};
use crate::network::addresses::veth_name;
use crate::network::routes::Peers;
use crate::observe::{self, Caller, Client, Clients, Flows, MapReader, Names, Open, Watch};
use crate::pod::PodTable;
use crate::policy::engine::Engine;
use crate::proxy::ProxyHandle;

/// Between two looks at what a watcher has lost.
const LOST_EVERY: Duration = Duration::from_secs(1);

type Probe = Box<dyn Fn() -> ComponentHealth + Send + Sync>;

/// Everything that the answers are made of.
pub struct Parts {
    pub node: Name,
    pub cluster: Cluster,
    pub proxy: ProxyHandle,
    pub maps: Arc<dyn MapReader>,
    pub features: Vec<Feature>,
    pub pods: PodTable,
    pub clients: Clients,
    pub flows: Flows,
}

/// Answers the questions.
pub struct Introspection {
    node: Name,
    cluster: Cluster,
    pub proxy: ProxyHandle,
    maps: Arc<dyn MapReader>,
    features: Vec<Feature>,
    pods: PodTable,
    clients: Clients,
    flows: Flows,
    announcements: Announcements,
    started: Instant,
    components: Vec<(&'static str, Probe)>,
    policies: Option<Engine>,
    peers: Option<watch::Receiver<Peers>>,
}

impl Introspection {
    /// Shows network policies, too.
    pub fn show_policies(&mut self, engine: Engine) {
        self.policies = Some(engine);
    }

    /// What it shows of the proxy.
    pub fn proxy(&self) -> &ProxyHandle {
        &self.proxy
    }

    /// Where flows are published.
    pub fn flows(&self) -> Flows {
        self.flows.clone()
    }

    /// Knows the API watches and the proxy as components; the others are added with [`Self::component`].
    pub fn new(parts: Parts) -> Self {
        let Parts {
            node,
            cluster,
            proxy,
            maps,
            features,
            pods,
            clients,
            flows,
        } = parts;
        let (watches, services) = (cluster.clone(), proxy.clone());
        let mut this = Self {
            node,
            cluster,
            proxy,
            maps,
            features,
            pods,
            clients,
            flows,
            announcements: Announcements::default(),
            started: Instant::now(),
            components: Vec::new(),
            policies: None,
            peers: None,
        };
        this.component("api", move || present::api_health(&watches));
        this.component("proxy", move || present::proxy_health(&services.health()));
        this
    }

    /// What it shows of who announces which address, to be filled by who knows.
    pub fn announcements(&self) -> Announcements {
        self.announcements.clone()
    }

    /// Adds a part of the agent to what `kernelet status` shows.
    pub fn component(
        &mut self,
        name: &'static str,
        health: impl Fn() -> ComponentHealth + Send + Sync + 'static,
    ) {
        self.components.push((name, Box::new(health)));
    }

    /// Shows how the other nodes' pods are reached.
    pub fn peers(&mut self, peers: watch::Receiver<Peers>) {
        self.peers = Some(peers);
    }

    /// Answers on `listener` until `shutdown` resolves.
    pub async fn serve(
        self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        tonic::transport::Server::builder()
            .add_service(IntrospectionServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
            .await
    }
}

fn map_status(error: &MapError) -> Status {
    let text = chain(error);
    match error {
        MapError::Unknown { .. } => Status::not_found(text),
        _ => Status::internal(text),
    }
}

/// Does what makes system calls, however many, on a thread where it holds nobody up.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| {
        Err(Status::internal(
            "a look panicked; its message is in the log",
        ))
    })
}

impl Introspection {
    /// Reads the maps.
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn MapReader) -> Result<T, MapError> + Send + 'static,
    ) -> Result<T, Status> {
        let maps = self.maps.clone();
        aside(move || look(&*maps).map_err(|error| map_status(&error))).await
    }

    async fn lookups(
        &self,
        keys: Vec<ServiceKey>,
        netns_cookie: Option<u64>,
    ) -> Result<Vec<(ServiceKey, Option<Lookup>)>, Status> {
        let look = move |maps: &dyn MapReader| {
            let found = keys
                .into_iter()
                .map(|key| Ok((key, maps.lookup(&key, netns_cookie)?)));
            found.collect()
        };
        self.read(look).await
    }
}

/// Who dials in `trace`. A pod on the host's network is as the host.
fn caller(clients: &Clients, node: &Name, client: &Client) -> Result<Caller, Status> {
    let found = match client {
        Client::Pod(key) => {
            let pod = clients.pod(key);
            let pod = pod.ok_or_else(|| {
                Status::not_found(format!("there is no pod {key} on node {node}"))
            })?;
            let on_host = !clients.has_namespace(&pod);
            clients.cookie(if on_host { &Client::Host } else { client })
        }
        other => clients.cookie(other),
    };
    let netns_cookie = found.ok_or_else(|| {
        Status::failed_precondition(format!("the network namespace of {client} is not known"))
    })?;
    Ok(Caller {
        name: client.to_string(),
        netns_cookie,
        now_ns: monotonic_ns(),
    })
}

/// What a watcher is sent: flows, and now and then what was lost.
fn records(watch: Watch) -> impl Stream<Item = Result<api::FlowRecord, Status>> + Send {
    let begin = (watch, api::Lost::default(), Tick::now() + LOST_EVERY);
    futures::stream::unfold(begin, |(mut watch, mut told, mut look_at)| async move {
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                flow = watch.next() => {
                    let record = api::FlowRecord { flow: Some(flow?), lost: None };
                    return Some((Ok(record), (watch, told, look_at)));
                }
                () = sleep_until(look_at) => {
                    look_at = Tick::now() + LOST_EVERY;
                    let lost = watch.lost();
                    if lost != told {
                        told = lost;
                        let record = api::FlowRecord { flow: None, lost: Some(lost) };
                        return Some((Ok(record), (watch, told, look_at)));
                    }
                }
            }
        }
    })
}

#[tonic::async_trait]
impl Api for Introspection {
    async fn status(
        &self,
        _: Request<api::StatusRequest>,
    ) -> Result<Response<api::StatusReply>, Status> {
        let components = self.components.iter().map(|(name, health)| {
            let ComponentHealth { healthy, detail } = health();
            api::Component {
                name: (*name).to_owned(),
                healthy,
                detail,
            }
        });
        let features = self.features.iter().map(|feature| api::Feature {
            name: feature.name.to_owned(),
            available: feature.available,
            detail: feature.detail.clone(),
        });
        let peers = self.peers.as_ref();
        let peers = peers.map_or_else(Vec::new, |peers| present::peers(&peers.borrow()));
        Ok(Response::new(api::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            components: components.collect(),
            features: features.collect(),
            peers,
        }))
    }

    async fn list_services(
        &self,
        request: Request<api::ListServicesRequest>,
    ) -> Result<Response<api::ListServicesReply>, Status> {
        let totals = self.read(|maps| maps.totals()).await?;
        let namespace = request.into_inner().namespace;
        let services = present::services(&self.proxy.read().state, &totals, &namespace);
        Ok(Response::new(api::ListServicesReply { services }))
    }

    async fn show_service(
        &self,
        request: Request<api::ShowServiceRequest>,
    ) -> Result<Response<api::ShowServiceReply>, Status> {
        let api::ShowServiceRequest { namespace, name } = request.into_inner();
        let key = ObjectKey::new(namespace, name);
        let totals = self.read(|maps| maps.totals()).await?;
        let (mut reply, keys) = {
            let view = self.cluster.view();
            let inner = self.proxy.read();
            if !view.services.contains_key(&key) && inner.state.frontends_of(&key).next().is_none()
            {
                return Err(if view.synced {
                    Status::not_found(format!("there is no service {key}"))
                } else {
                    Status::unavailable(
                        "the agent has not heard of all services yet; ask again in a moment",
                    )
                });
            }
            let (mut reply, keys) =
                present::service_details(&view, &self.node, &inner, &totals, &key);
            reply.announcements = present::announcements(&view, &key, &self.announcements);
            (reply, keys)
        };
        let found = self.lookups(keys, None).await?;
        for (detail, (_, found)) in reply.ports.iter_mut().zip(found) {
            let rows = found.iter().flat_map(|found| found.rows());
            detail.entries = rows.map(present::row).collect();
        }
        let peers = self.peers.as_ref().map(watch::Receiver::borrow);
        for detail in &mut reply.ports {
            direct_return::explain(detail, peers.as_deref());
        }
        drop(peers);
        Ok(Response::new(reply))
    }

    async fn list_backends(
        &self,
        _: Request<api::ListBackendsRequest>,
    ) -> Result<Response<api::ListBackendsReply>, Status> {
        let totals = self.read(|maps| maps.totals()).await?;
        let backends = present::backends(
            &self.cluster.view(),
            &self.node,
            &self.proxy.read().state,
            &totals,
        );
        Ok(Response::new(api::ListBackendsReply { backends }))
    }

    async fn list_connections(
        &self,
        request: Request<api::ListConnectionsRequest>,
    ) -> Result<Response<api::ListConnectionsReply>, Status> {
        let rows = self.read(|maps| maps.sockets()).await?;
        let outside = self.read(|maps| maps.outside()).await?;
        let clients = self.clients.clone();
        // Each look takes a thread of its own into the namespace, and waits for it.
        let (open, looks) = aside(move || {
            let open = rows.into_iter().map(|(cookie, entry)| Open {
                cookie,
                entry,
                client: clients.find(entry.netns_cookie),
            });
            let open: Vec<Open> = open.collect();
            let look = |path: PathBuf| (sockets_in(&path), path);
            let looks = clients.namespaces().into_iter().map(look);
            Ok((open, looks.collect::<Vec<_>>()))
        })
        .await?;
        let (mut infos, mut notes) = (HashMap::new(), Vec::new());
        for (found, path) in looks {
            match found {
                Ok(found) => infos.extend(found.sockets.into_iter().map(|it| (it.cookie, it))),
                // The pod ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => notes.push(format!("{}: {error}", path.display())),
            }
        }
        let view = self.cluster.view();
        let inner = self.proxy.read();
        let names = Names {
            view: &view,
            state: &inner.state,
        };
        let filter = request.into_inner();
        let now = monotonic_ns();
        let mut connections = observe::connections(&open, &infos, names, now, &filter);
        connections.extend(observe::outside(&outside, names, now, &filter));
        connections.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        Ok(Response::new(api::ListConnectionsReply {
            connections,
            notes,
        }))
    }

    type WatchFlowsStream = Pin<Box<dyn Stream<Item = Result<api::FlowRecord, Status>> + Send>>;

    async fn watch_flows(
        &self,
        request: Request<api::WatchFlowsRequest>,
    ) -> Result<Response<Self::WatchFlowsStream>, Status> {
        let watch = self.flows.watch(request.into_inner());
        let watch = watch.map_err(|error| map_status(&error))?;
        Ok(Response::new(Box::pin(records(watch))))
    }

    async fn trace(
        &self,
        request: Request<api::TraceRequest>,
    ) -> Result<Response<api::TraceReply>, Status> {
        let api::TraceRequest { from, to, protocol } = request.into_inner();
        let client = match from.split_once('/') {
            None if from == "host" => Client::Host,
            None => Client::Pod(ObjectKey::new("default", from)),
            Some((namespace, name)) => Client::Pod(ObjectKey::new(namespace, name)),
        };
        let from_pod = match &client {
            Client::Pod(key) => Some(key.clone()),
            _ => None,
        };
        let (clients, node) = (self.clients.clone(), self.node.clone());
        let caller = aside(move || caller(&clients, &node, &client)).await?;
        let keys = observe::destinations(&self.cluster.view(), &to, &protocol);
        let keys = keys.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let found = self.lookups(keys, Some(caller.netns_cookie)).await?;
        let view = self.cluster.view();
        let inner = self.proxy.read();
        let names = Names {
            view: &view,
            state: &inner.state,
        };
        let mut traces: Vec<api::Trace> = found
            .iter()
            .map(|(key, found)| observe::trace(key, found.as_ref(), &caller, names, &self.node))
            .collect();
        if let Some(engine) = &self.policies {
            for trace in &mut traces {
                super::policy::add_to(trace, engine, from_pod.as_ref());
            }
        }
        Ok(Response::new(api::TraceReply { traces }))
    }

    async fn show_policy(
        &self,
        request: Request<api::ShowPolicyRequest>,
    ) -> Result<Response<api::ShowPolicyReply>, Status> {
        let api::ShowPolicyRequest { namespace, name } = request.into_inner();
        let Some(engine) = &self.policies else {
            return Err(Status::failed_precondition(
                "this agent does not enforce network policies",
            ));
        };
        let key = ObjectKey::new(namespace, name);
        let pod = self.pods.list().into_iter();
        let pod = pod.map(|pod| (pod.namespace, pod.name, pod.uid));
        let uid = (pod.into_iter())
            .find(|(namespace, name, _)| **namespace == *key.namespace && **name == *key.name)
            .map(|(_, _, uid)| uid);
        let uid = uid.ok_or_else(|| {
            Status::not_found(format!("there is no pod {key} on node {}", self.node))
        })?;
        let reply = super::policy::show(engine, &key, &veth_name(&uid));
        Ok(Response::new(reply))
    }

    async fn list_maps(
        &self,
        _: Request<api::ListMapsRequest>,
    ) -> Result<Response<api::ListMapsReply>, Status> {
        let maps = self.read(|maps| maps.summaries()).await?;
        Ok(Response::new(api::ListMapsReply {
            maps: maps.into_iter().map(present::map).collect(),
        }))
    }

    type DumpMapStream = Pin<Box<dyn Stream<Item = Result<api::MapRow, Status>> + Send>>;

    async fn dump_map(
        &self,
        request: Request<api::DumpMapRequest>,
    ) -> Result<Response<Self::DumpMapStream>, Status> {
        let name = request.into_inner().name;
        let rows = self.read(move |maps| maps.rows(&name)).await?;
        Ok(Response::new(Box::pin(futures::stream::iter(
            rows.into_iter().map(|row| Ok(present::row(row))),
        ))))
    }

    async fn list_pods(
        &self,
        _: Request<api::ListPodsRequest>,
    ) -> Result<Response<api::ListPodsReply>, Status> {
        let traffic = self.read(|maps| maps.traffic()).await?;
        let pods = self.pods.list().into_iter();
        let pods = pods.map(|pod| {
            let traffic = pod.at(&traffic);
            present::pod(pod, traffic)
        });
        let pods = pods.collect();
        Ok(Response::new(api::ListPodsReply { pods }))
    }
}

#[cfg(test)]
#[path = "introspection_tests.rs"]
mod tests;
