//! Puts the parts of the agent together and runs them.
//!
//! ```text
//! socket ── probe ── kubeconfig ── programs and maps ──┬── watches ── proxy
//!                                                      ├── introspection
//!                                                      └── Node object ── pod range ── network ── DNS, routes ── pods
//! ```
//!
//! The services come first and need nothing of the rest: they are served again before the node is known to anybody.
//! [`proxy_only`] runs that half alone.

mod connect;
mod policy;
mod proxy_only;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::announce::{Announcements, Announcer, Pulse};
use crate::chain::chain;
use crate::cluster::{Cluster, Name};
use crate::config::{AgentConfig, KUBELET_PORT};
use crate::dataplane::{
    self, ClosingMaps, Connections, Events, Feature, Fill, LoadError, MapError, MapSizes, Maps,
    PodLinks, Probe, ProbeError, Retired, ServiceMaps as _, StaleSockets, TakeOver, Uplinks,
};
use crate::dns::resolv_conf::{ClusterDns, ResolvConf, servers};
use crate::dns::server::DnsError;
use crate::events;
use crate::housekeeping::keeper::{self, Keeper};
use crate::network::netlink::NetlinkError;
use crate::network::pods::{self as pod_network, VethNetwork};
use crate::network::routes::Peers;
use crate::network::xdp::Why;
use crate::network::{
    LinkGuard, NetworkError, PodNetwork, masquerade, near, node_addresses, uplinks,
};
use crate::node::credentials::{CredentialsError, NodeClient};
use crate::node::facts::{Facts, FactsError};
use crate::node::follow::follow;
use crate::node::rotation::{
    ServingCertificate, keep_client_certificate, keep_serving_certificate,
};
use crate::node::status::{Health, Identity, Part, allocatable};
use crate::node::upkeep::Upkeep;
use crate::observe::{self, Clients, Flows, MapReader, Publisher, Sources};
use crate::pod::{Loads, Manager, Paths, PodTable, Settings};
use crate::policy::connect::{PolicedNetwork, PolicyGuard};
use crate::proxy::feedback::Kernel;
use crate::proxy::{self, LbState, Metrics, ProxyHandle};
use crate::runtime::containerd::Containerd;
use crate::runtime::host::Host;
use crate::runtime::{Runtime, RuntimeError};
use crate::server::access::Access;
use crate::server::https::{self, HttpsError, KubeletApi};
use crate::server::introspection::{self, Introspection};
use crate::server::socket::{self, SocketError};
use crate::server::streaming::routes::Sessions;
use crate::server::{ComponentHealth, health_checks};
use crate::shutdown::{Watcher, logind};

/// Between two looks at whether the runtime answers.
const RUNTIME_CHECK: Duration = Duration::from_secs(10);
/// How often the files of static pods are read, as upstream.
const FILE_CHECK: Duration = Duration::from_secs(20);
/// Between two attempts to let new service programs take over.
const TAKE_OVER_RETRY: Duration = Duration::from_secs(5);
/// Between two looks for rows of sockets that the programs cannot remove: longer than an ended connection may linger.
const SOCKET_SWEEP: Duration = Duration::from_secs(1800);
/// Between two looks for translated connections that are over.
const CONNECTION_SWEEP: Duration = Duration::from_secs(15);
/// The node's own resolvers, for names outside of the cluster.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the agent needs root: it loads programs into the kernel and makes namespaces")]
    NotRoot,
    /// Flags that make no sense together.
    #[error("{0}")]
    Flags(String),
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("the node's address cannot be told from the route to {server}; name it with --node-ip")]
    NoNodeAddress { server: String },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    PolicyMap(#[from] dataplane::PolicyMapError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Facts(#[from] FactsError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Dns(#[from] DnsError),
    #[error("cannot tell which program this is, which writes the containers' logs")]
    Program(#[source] io::Error),
    #[error("cannot listen for {what} at {address}; is kube-proxy running on this node?")]
    ListenAsProxy {
        what: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot listen for the kubelet API at {address}; is another kubelet running on this node?"
    )]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Https(#[from] HttpsError),
    #[error("the introspection server ended")]
    Introspection(#[source] tonic::transport::Error),
    #[error("a part of the agent panicked; its message is above")]
    Panicked,
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
}

/// Parts that run as long as the agent. One that ends, ends it: the supervisor starts it anew.
type Parts = JoinSet<Result<(), RunError>>;

/// Runs the agent until a signal ends it. What it left in the kernel goes on serving.
pub async fn run(config: AgentConfig) -> Result<(), RunError> {
    if !rustix::process::geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    let path = config.socket();
    let socket = socket::bind(&path).await?;
    let ended = run_alone(config, socket).await;
    // The socket says that an agent runs. One that cannot be removed is replaced by the next agent.
    let _ = fs::remove_file(path);
    ended
}

/// What most parts need to know of the node that they serve.
struct Node {
    config: AgentConfig,
    name: Name,
    /// At most one of each family, the primary one first.
    addresses: Vec<IpAddr>,
    cluster: Cluster,
    paths: Paths,
}

/// The half of the agent that routes services.
struct Services<'a> {
    config: &'a AgentConfig,
    node: &'a Name,
    cluster: &'a Cluster,
    /// The node's addresses among those of its uplinks.
    addresses: &'a [IpAddr],
    /// Directory of the pins of the pods' network namespaces.
    namespaces: PathBuf,
}

impl Services<'_> {
    /// Brings the programs into the kernel, and starts what keeps their maps as the cluster wants them. Gives what shows
    /// them to people.
    fn start(
        self,
        probe: Probe,
        client: &kube::Client,
        pods: PodTable,
        registry: &mut Registry,
        parts: &mut Parts,
    ) -> Result<(Introspection, PodLinks, PathBuf), RunError> {
        let mut dataplane = dataplane::start(
            &dataplane::Config {
                bpf_dir: self.config.bpf_dir.clone(),
                cgroup: probe.cgroup.clone(),
                sizes: MapSizes::for_services(self.config.max_services)
                    .with_connections(self.config.max_connections),
            },
            &probe,
        )?;
        info!(
            adopted = dataplane.adopted,
            "the service programs are in the kernel"
        );
        let (first, last) = self.config.service_node_port_range;
        dataplane.maps.set_node_ports(first, last)?;
        let pinned = dataplane.maps.dump()?;
        dataplane.maps.forget_counters(&pinned)?;
        let proxy = ProxyHandle::new(LbState::adopt(pinned, rand::random()));
        proxy.set_waiting(dataplane.take_over.is_some());
        for watch in self.cluster.watches(client) {
            parts.spawn(unfailing(watch));
        }
        let counters = Arc::new(Maps::open(&dataplane.dir)?);
        let retired = Retired::default();
        let maps = ClosingMaps::new(dataplane.maps, self.namespaces.clone());
        let events = events::Events::start(client.clone(), "kernelet", self.node.to_string());
        let settings = proxy::Settings {
            node: self.node.clone(),
            locality: self.config.locality,
            events: Some(events.clone()),
        };
        parts.spawn(unfailing(proxy::run(
            self.cluster.clone(),
            settings,
            proxy.clone(),
            Metrics::new(registry),
            maps.telling(retired.clone()),
            Kernel::new(counters, Loads::new(pods.clone(), paths(self.config))),
        )));
        let keeping = node_addresses::run(
            self.cluster.clone(),
            self.node.clone(),
            self.addresses.to_vec(),
            self.config.nodeport_addresses.clone(),
            Maps::open(&dataplane.dir)?,
        );
        parts.spawn(async { Ok(keeping.await?) });
        parts.spawn(unfailing(health_checks::run(
            self.cluster.clone(),
            self.node.clone(),
            proxy.clone(),
            events,
        )));
        let stale = StaleSockets::new(Maps::open(&dataplane.dir)?);
        parts.spawn(unfailing(sweep_sockets(stale)));
        let (programs, programs_seen) = watch::channel(Part::Up);
        if let Some(take_over) = dataplane.take_over {
            let taken = take_over_when_complete(take_over, proxy.clone(), programs);
            parts.spawn(unfailing(taken));
        }
        let observed = Observed {
            node: self.node,
            cluster: self.cluster,
            proxy: &proxy,
            maps: &dataplane.dir,
            pins: self.namespaces,
            retired,
            pods,
            features: probe.features,
        };
        let mut introspection = observed.start(registry, parts)?;
        let uplinks = Uplinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
        let (left, left_seen) = watch::channel(uplinks::LeftOut::default());
        let (paths, paths_seen) = watch::channel(uplinks::Paths::default());
        let settings = uplinks::Settings {
            addresses: self.addresses.to_vec(),
            xdp: self.config.xdp,
            paths,
            left,
        };
        parts.spawn(keep_uplinks(settings, uplinks, programs_seen.clone()));
        introspection.component("xdp", move || ways(&paths_seen.borrow()));
        introspection.component("uplinks", move || {
            let left = left_seen.borrow();
            ComponentHealth {
                healthy: !left.is_own,
                detail: left.to_string(),
            }
        });
        introspection.component("programs", move || shown(&programs_seen.borrow()));
        let pod_links = PodLinks::new(dataplane.link_programs, &dataplane.dir)?;
        pod_links.refuse_at(self.addresses)?;
        Ok((introspection, pod_links, dataplane.dir))
    }
}

/// Keeps the programs at the uplinks, from when the tables that they read are complete.
async fn keep_uplinks(
    settings: uplinks::Settings,
    uplinks: Uplinks,
    mut programs: watch::Receiver<Part>,
) -> Result<(), RunError> {
    // An error means that nobody will say more: they are up then.
    let _ = programs.wait_for(|part| *part == Part::Up).await;
    Ok(uplinks::run(settings, uplinks).await?)
}

/// Removes translated connections that are over.
async fn sweep_connections(
    mut connections: Connections,
    publisher: Publisher,
    shown: watch::Sender<Fill>,
) {
    loop {
        match tokio::task::block_in_place(|| connections.sweep(dataplane::monotonic_ns())) {
            Ok(swept) => {
                publisher.over(&swept.over);
                if swept.fill.is_crowded() {
                    warn!("the table of translated connections has {}", swept.fill);
                }
                shown.send_replace(swept.fill);
            }
            Err(error) => warn!(
                error = chain(&error),
                "cannot look for translated connections that are over"
            ),
        }
        tokio::time::sleep(CONNECTION_SWEEP).await;
    }
}

/// Removes rows of sockets that the programs cannot remove.
async fn sweep_sockets(mut stale: StaleSockets) {
    loop {
        tokio::time::sleep(SOCKET_SWEEP).await;
        match tokio::task::block_in_place(|| stale.sweep()) {
            Ok(0) => {}
            Ok(rows) => info!(rows, "removed the rows of sockets that ended unheard"),
            Err(error) => warn!(
                error = chain(&error),
                "cannot look for rows of ended sockets"
            ),
        }
    }
}

/// Lets the new programs serve once their tables are complete. Until then those of another version do.
async fn take_over_when_complete(
    mut take_over: TakeOver,
    proxy: ProxyHandle,
    programs: watch::Sender<Part>,
) {
    const WAITING: &str = "those of another version serve until the new tables are complete";
    info!("service programs: {WAITING}");
    programs.send_replace(Part::Down(WAITING.to_owned()));
    proxy.complete().await;
    // System calls only, and some of them for each open socket.
    while let Err(error) = tokio::task::block_in_place(|| take_over.run()) {
        let error = chain(&error);
        warn!(
            error,
            "the new service programs cannot take over; trying again"
        );
        programs.send_replace(Part::Down(format!("cannot take over: {error}")));
        tokio::time::sleep(TAKE_OVER_RETRY).await;
    }
    proxy.set_waiting(false);
    programs.send_replace(Part::Up);
    // The links hold the programs.
    drop(take_over);
    std::future::pending().await
}

/// Runs the agent that holds the introspection socket: there is no other in this run directory.
async fn run_alone(config: AgentConfig, socket: UnixListener) -> Result<(), RunError> {
    if config.proxy_only {
        return proxy_only::run(config, socket).await;
    }
    let rules = config.housekeeping.rules().map_err(RunError::Flags)?;
    let image_rules = config.housekeeping.image_rules().map_err(RunError::Flags)?;
    let steps = config.shutdown.steps().map_err(RunError::Flags)?;
    let mut probe = dataplane::probe(config.cgroup_root.as_deref())?;
    if !config.pod_fast_path {
        probe.without_fast_paths();
    }
    let node_client = NodeClient::load(&config.kubeconfig()).await?;
    let node = Node {
        name: config.node_name().into(),
        addresses: own_addresses(&config, &node_client)?,
        cluster: Cluster::default(),
        paths: paths(&config),
        config,
    };
    let config = &node.config;
    let client = node_client.client();
    // Before anything is put into the kernel: what may fail because of others leaves nothing there.
    let mut kubelet = Vec::new();
    for address in &node.addresses {
        kubelet.push(listen(SocketAddr::new(*address, KUBELET_PORT)).await?);
    }
    let logger = std::env::current_exe().map_err(RunError::Program)?;
    let scratch = config.run_dir.join("exec");
    let runtime = Containerd::new(&config.containerd, Host::probe(), &logger, &scratch);
    runtime.version().await?;
    runtime.resume_logs();
    runtime.end_orphans().await;
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);
    let fresh = !config.bpf_dir.exists();

    let mut registry = Registry::default();
    let (health, health_seen) = watch::channel(Health::default());
    let pods = PodTable::default();
    let mut parts = Parts::new();
    let services = Services {
        config,
        node: &node.name,
        cluster: &node.cluster,
        addresses: &node.addresses,
        namespaces: config.run_dir.join("netns"),
    };
    let (mut introspection, pod_links, dir) =
        services.start(probe, &client, pods.clone(), &mut registry, &mut parts)?;
    let announcements = introspection.announcements();
    show_health(&mut introspection, &health_seen);
    let (waits, waits_seen) = watch::channel(Part::Down("pods do not run yet".into()));
    let off = steps.total().is_zero();
    introspection.component("graceful-shutdown", move || match off {
        true => ComponentHealth {
            healthy: true,
            detail: "off: --shutdown-grace-period is 0".into(),
        },
        false => shown(&waits_seen.borrow()),
    });
    let engine = match config.ignore_network_policies {
        true => {
            policy::release(&dir)?;
            None
        }
        false => {
            let client = client.clone();
            let pins = config.run_dir.join("netns");
            let flows = introspection.flows();
            let (name, own) = (&node.name, &node.addresses);
            let engine = policy::start(name, own, client, &dir, pins, flows, &mut parts)?;
            policy::show(&mut introspection, engine.clone());
            Some(engine)
        }
    };
    let (peers, peers_seen) = watch::channel(Peers::default());
    let neighbours = Maps::open(&dir)?;
    parts.spawn(unfailing(near::run(peers_seen.clone(), neighbours)));
    introspection.peers(peers_seen.clone());
    let telling = connect::tell_routes(peers_seen, health.clone());
    parts.spawn(unfailing(telling));
    parts.spawn(introspect(introspection, socket));
    let maps = Maps::open(&dir)?;
    let (announcer, upkeep) = announcing(&node, &client, health_seen, announcements, maps);
    parts.spawn(keep_node(upkeep));
    parts.spawn(async { Ok(announcer.run().await?) });
    parts.spawn(keep_client(&node, node_client.clone()));
    let serving = Arc::new(ServingCertificate::default());
    parts.spawn(keep_serving(&node, client.clone(), serving.clone()));
    let events = events::Events::start(client.clone(), "kernelet", node.name.to_string());
    parts.spawn(connect::keep_routes(&node, events.clone(), peers));
    let tls = https::tls_config(node_client.authorities(), serving)?;
    let access = Access::new(client.clone(), node.name.to_string());
    let api = KubeletApi {
        node: node.name.to_string(),
        access: Arc::new(access),
        pods: pods.clone(),
        paths: node.paths.clone(),
        runtime: runtime.clone(),
        sessions: Sessions::default(),
        configz: Arc::new(node.config.configz()),
        metrics: Arc::new(move || text(&registry)),
    };
    for listener in kubelet {
        let served = https::serve(listener, tls.clone(), api.clone());
        parts.spawn(unfailing(served));
    }
    info!(node = %node.name, addresses = ?node.addresses, "the agent runs");

    parts.spawn(unfailing(watch_runtime(runtime.clone(), health.clone())));

    let serve_pods = async {
        // None: a part ended while the node waited for its range.
        let exempt = Maps::open(&dir)?;
        let told = node.config.masquerade_exempt.clone();
        parts.spawn(unfailing(masquerade::run(
            node.cluster.clone(),
            told,
            exempt,
        )));
        let mut guard: Arc<dyn LinkGuard> = Arc::new(pod_links);
        if let Some(engine) = &engine {
            guard = Arc::new(PolicyGuard {
                engine: engine.clone(),
                inner: guard,
            });
        }
        let connected = connect::connect(&node, guard, &health, &events, &mut parts).await;
        if connected.is_err() && fresh {
            // No pod of this node has come to rely on them.
            dataplane::remove(&config.bpf_dir)?;
        }
        let Some(network) = connected? else {
            return Ok(());
        };
        let network = Arc::new(network);
        parts.spawn(keep_network(network.clone()));
        parts.spawn(unfailing(connect::confirm_ranges(&node, network.clone())));
        let settings = settings(&node, &network.gateways(), &Facts::read(&config.root_dir)?);
        let network: Arc<dyn PodNetwork> = match engine {
            None => network,
            Some(engine) => Arc::new(PolicedNetwork {
                engine,
                inner: network,
            }),
        };
        let keeping = events::Events::start(client.clone(), "kubelet", node.name.to_string());
        let manager = Manager::start(client, settings, runtime.clone(), network, pods.clone());
        if !off {
            let watcher = Watcher {
                bus: logind::SYSTEM_BUS.into(),
                logind_config: logind::CONFIG.into(),
                steps,
                node: node.name.to_string(),
                pods: pods.clone(),
                demands: manager.demands(),
                health: health.clone(),
                told: waits,
                events: keeping.clone(),
            };
            parts.spawn(unfailing(watcher.run()));
        }
        let keeper = Keeper {
            period: keeper::PERIOD,
            node: node.name.to_string(),
            root_dir: node.config.root_dir.clone(),
            paths: node.paths.clone(),
            pods,
            runtime,
            demands: manager.demands(),
            rules,
            image_rules,
            health: health.clone(),
            events: keeping,
        };
        parts.spawn(unfailing(keeper.run()));
        parts.spawn(unfailing(manager.ended()));
        outcome(parts.join_next().await)
    };
    tokio::select! {
        ended = serve_pods => ended,
        signal = told_to_end() => signal.map_err(RunError::Signal),
    }
}

fn paths(config: &AgentConfig) -> Paths {
    Paths::new(
        config.root_dir.clone(),
        config.run_dir.clone(),
        config.cgroup_parent.clone(),
    )
}

/// The services, as people and Prometheus see them.
struct Observed<'a> {
    node: &'a Name,
    cluster: &'a Cluster,
    proxy: &'a ProxyHandle,
    /// Where the maps are pinned.
    maps: &'a Path,
    /// Directory of the pins of the pods' network namespaces.
    pins: PathBuf,
    retired: Retired,
    pods: PodTable,
    features: Vec<Feature>,
}

impl Observed<'_> {
    fn start(self, registry: &mut Registry, parts: &mut Parts) -> Result<Introspection, RunError> {
        let maps: Arc<dyn MapReader> = Arc::new(Maps::open(self.maps)?);
        let clients = Clients::new(self.pins, self.pods.clone());
        let flows = Flows::new(Box::new(Mutex::new(Maps::open(self.maps)?)))?;
        let events = Events::open(self.maps)?;
        let publisher = Publisher {
            flows: flows.clone(),
            clients: clients.clone(),
            cluster: self.cluster.clone(),
            proxy: self.proxy.clone(),
        };
        let connections = Connections::new(Maps::open(self.maps)?);
        let (fill, fill_seen) = watch::channel(Fill::default());
        let sweeping = sweep_connections(connections, publisher.clone(), fill);
        parts.spawn(unfailing(sweeping));
        let reading = observe::run(events, publisher);
        parts.spawn(async { Ok(reading.await?) });
        let sources = Sources {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            proxy: self.proxy.clone(),
            maps: maps.clone(),
            retired: self.retired,
            flows: flows.clone(),
            pods: self.pods.clone(),
        };
        observe::register(registry, sources);
        let mut introspection = Introspection::new(introspection::Parts {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            proxy: self.proxy.clone(),
            maps,
            features: self.features,
            pods: self.pods,
            clients,
            flows,
        });
        introspection.component("connections", move || {
            let fill = *fill_seen.borrow();
            ComponentHealth {
                healthy: !fill.is_crowded(),
                detail: fill.to_string(),
            }
        });
        Ok(introspection)
    }
}

/// A part that cannot fail: it ends by a panic, or because it is stopped.
async fn unfailing(part: impl Future<Output = ()>) -> Result<(), RunError> {
    part.await;
    Ok(())
}

async fn introspect(introspection: Introspection, socket: UnixListener) -> Result<(), RunError> {
    let served = introspection.serve(socket, std::future::pending()).await;
    served.map_err(RunError::Introspection)
}

/// What keeps the Node object and its Lease, and what announces load balancers' addresses, which says how fast.
fn announcing(
    node: &Node,
    client: &kube::Client,
    health: watch::Receiver<Health>,
    shown: Announcements,
    maps: Maps,
) -> (Announcer, Upkeep) {
    let (pulse, pulse_seen) = watch::channel(Pulse::default());
    let (fit, fit_seen) = watch::channel(false);
    let announcer = Announcer {
        node: node.name.clone(),
        cluster: node.cluster.clone(),
        client: client.clone(),
        pulse,
        fit: fit_seen,
        shown,
        maps,
    };
    let upkeep = Upkeep {
        client: client.clone(),
        identity: Identity {
            name: node.name.to_string(),
            addresses: node.addresses.clone(),
            labels: node.config.labels(),
            kubelet_port: KUBELET_PORT,
        },
        root_dir: node.config.root_dir.clone(),
        kept_back: node.config.housekeeping.eviction_hard.clone(),
        health,
        pulse: pulse_seen,
        fit,
    };
    (announcer, upkeep)
}

async fn keep_node(upkeep: Upkeep) -> Result<(), RunError> {
    Ok(upkeep.run().await?)
}

/// Renews the certificate in the node's kubeconfig, or follows whoever made the kubeconfig and renews its files.
fn keep_client(
    node: &Node,
    client: NodeClient,
) -> impl Future<Output = Result<(), RunError>> + use<> {
    let name = node.name.to_string();
    async move {
        keep_client_certificate(client.clone(), name).await;
        follow(client).await;
        Ok(())
    }
}

fn keep_serving(
    node: &Node,
    client: kube::Client,
    serving: Arc<ServingCertificate>,
) -> impl Future<Output = Result<(), RunError>> + use<> {
    let (name, addresses) = (node.name.to_string(), node.addresses.clone());
    let root_dir = node.config.root_dir.clone();
    async move {
        keep_serving_certificate(client, name, addresses, &root_dir, serving).await;
        Ok(())
    }
}

async fn keep_network(network: Arc<VethNetwork>) -> Result<(), RunError> {
    Ok(pod_network::keep(network).await?)
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| RunError::Listen { address, source })
}

fn settings(node: &Node, gateways: &[IpAddr], facts: &Facts) -> Settings {
    let domain = node.config.cluster_domain.trim_matches('.').to_owned();
    let (cluster, own) = (node.cluster.clone(), node.name.clone());
    let gateway = gateways.first().copied();
    Settings {
        node_name: node.name.to_string(),
        host_addresses: node.addresses.clone(),
        paths: node.paths.clone(),
        file_check: FILE_CHECK,
        static_pods: node.config.pod_manifest_path.clone(),
        allocatable: allocatable(facts, &node.config.housekeeping.eviction_hard),
        cluster: cluster.clone(),
        dns: Arc::new(move || ClusterDns {
            addresses: gateway.map_or_else(Vec::new, |it| servers(&cluster.view(), &own, it)),
            domain: domain.clone(),
            node: ResolvConf::of_node(RESOLV_CONF.as_ref()),
        }),
    }
}

fn outcome(
    ended: Option<Result<Result<(), RunError>, tokio::task::JoinError>>,
) -> Result<(), RunError> {
    match ended {
        Some(Ok(result)) => result,
        Some(Err(error)) if error.is_panic() => Err(RunError::Panicked),
        Some(Err(_)) | None => Ok(()),
    }
}

/// Asks the runtime from time to time whether it answers.
async fn watch_runtime(runtime: Arc<dyn Runtime>, health: watch::Sender<Health>) {
    loop {
        let version = runtime.version().await;
        health.send_if_modified(|health| {
            let before = health.clone();
            match version {
                Ok(version) => {
                    health.runtime = Part::Up;
                    health.runtime_version = version;
                }
                Err(error) => health.runtime = Part::Down(error.to_string()),
            }
            *health != before
        });
        tokio::time::sleep(RUNTIME_CHECK).await;
    }
}

/// Adds the parts that [`Health`] knows to what `kernelet status` shows.
fn show_health(introspection: &mut Introspection, health: &watch::Receiver<Health>) {
    let (runtime, network) = (health.clone(), health.clone());
    introspection.component("runtime", move || shown(&runtime.borrow().runtime));
    introspection.component("network", move || shown(&network.borrow().network));
}

/// Where packets go round the network stack, and why not elsewhere: neither is amiss.
fn ways(paths: &uplinks::Paths) -> ComponentHealth {
    let way = |(link, why): (&String, &Option<Why>)| match why {
        None => format!("{link}: native"),
        Some(why) => format!("{link}: none, {why}"),
    };
    let ways: Vec<String> = paths.iter().map(way).collect();
    ComponentHealth {
        healthy: true,
        detail: ways.join("; "),
    }
}

fn shown(part: &Part) -> ComponentHealth {
    match part {
        Part::Up => ComponentHealth {
            healthy: true,
            detail: String::new(),
        },
        Part::Down(why) => ComponentHealth {
            healthy: false,
            detail: why.clone(),
        },
    }
}

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

/// The addresses at which other nodes reach this one: what was said, else the one from which the API server is reached.
fn own_addresses(config: &AgentConfig, client: &NodeClient) -> Result<Vec<IpAddr>, RunError> {
    if let Some(said) = &config.node_ip {
        return Ok(said.0.clone());
    }
    let server = client.server().to_owned();
    // Connecting a UDP socket sends nothing; it only chooses a route. Of the server's addresses, the first that has one.
    let towards = |any: &str| {
        let socket = UdpSocket::bind(any)?;
        socket.connect(&*server)?;
        socket.local_addr()
    };
    match towards("0.0.0.0:0").or_else(|_| towards("[::]:0")) {
        Ok(local) => Ok(vec![local.ip()]),
        Err(_) => Err(RunError::NoNodeAddress { server }),
    }
}

async fn told_to_end() -> io::Result<()> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
