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
mod services;
mod status;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use self::services::Services;
use self::status::{show_health, shown};
use crate::announce::{Announcements, Announcer, Pulse};
use crate::cluster::{Cluster, Name};
use crate::config::{AgentConfig, KUBELET_PORT};
use crate::dataplane::{self, LoadError, MapError, Maps, ProbeError};
use crate::dns::resolv_conf::{ClusterDns, ResolvConf, servers};
use crate::dns::server::DnsError;
use crate::events::{self, Kind, Subject};
use crate::housekeeping::keeper::{self, Keeper};
use crate::network::netlink::NetlinkError;
use crate::network::pods::{self as pod_network, VethNetwork};
use crate::network::routes::Peers;
use crate::network::{LinkGuard, NetworkError, PodNetwork, masquerade, near};
use crate::node::credentials::{CredentialsError, NodeClient};
use crate::node::facts::{Facts, FactsError};
use crate::node::follow::follow;
use crate::node::reserve::Reserved;
use crate::node::rotation::{
    ServingCertificate, keep_client_certificate, keep_serving_certificate,
};
use crate::node::status::{Health, Identity, Part, allocatable};
use crate::node::upkeep::Upkeep;
use crate::pod::{Manager, Paths, PodTable, Settings, limit_all};
use crate::policy::connect::{PolicedNetwork, PolicyGuard};
use crate::runtime::containerd::Containerd;
use crate::runtime::host::{Host, app_armor_is_on};
use crate::runtime::{Handler, Runtime, RuntimeError};
use crate::server::ComponentHealth;
use crate::server::access::Access;
use crate::server::https::{self, HttpsError, KubeletApi};
use crate::server::introspection::Introspection;
use crate::server::socket::{self, SocketError};
use crate::server::streaming::routes::Sessions;
use crate::shutdown::{Watcher, logind};

/// Between two looks at whether the runtime answers.
const RUNTIME_CHECK: Duration = Duration::from_secs(10);
/// How often the files of static pods are read, as upstream.
const FILE_CHECK: Duration = Duration::from_secs(20);
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

/// Runs the agent that holds the introspection socket: there is no other in this run directory.
async fn run_alone(config: AgentConfig, socket: UnixListener) -> Result<(), RunError> {
    if config.proxy_only {
        return proxy_only::run(config, socket).await;
    }
    let rules = config.housekeeping.rules().map_err(RunError::Flags)?;
    let image_rules = config.housekeeping.image_rules().map_err(RunError::Flags)?;
    let reserved = config.kept_back().reserved;
    if reserved != Reserved::default() {
        let checked = reserved.check(&Facts::read(&config.root_dir)?);
        checked.map_err(RunError::Flags)?;
    }
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
    tokio::spawn(runtime.end_orphans());
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
    let reached = peers_seen.clone();
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
        rates: Arc::default(),
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
            node.name.to_string(),
            reached,
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
        let facts = Facts::read(&config.root_dir)?;
        let settings = settings(&node, &network.gateways(), &facts);
        let network: Arc<dyn PodNetwork> = match engine {
            None => network,
            Some(engine) => Arc::new(PolicedNetwork {
                engine,
                inner: network,
            }),
        };
        let keeping = events::Events::start(client.clone(), "kubelet", node.name.to_string());
        limit_pods(&node, &facts, &keeping);
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
        kept_back: node.config.kept_back(),
        health,
        pulse: pulse_seen,
        fit,
        events: events::Events::start(client.clone(), "kubelet", node.name.to_string()),
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
        allocatable: allocatable(facts, &node.config.kept_back()),
        app_armor: app_armor_is_on(),
        pod_max_pids: node.config.pod_max_pids(),
        allowed_sysctls: node.config.allowed_unsafe_sysctls.clone(),
        cluster: cluster.clone(),
        dns: Arc::new(move || ClusterDns {
            addresses: gateway.map_or_else(Vec::new, |it| servers(&cluster.view(), &own, it)),
            domain: domain.clone(),
            node: ResolvConf::of_node(RESOLV_CONF.as_ref()),
        }),
    }
}

/// Keeps pods from what is reserved, in upstream's words. Where that fails, they go without that limit.
fn limit_pods(node: &Node, facts: &Facts, events: &events::Events) {
    let limits = node.config.kept_back().reserved.left(facts);
    let (kind, reason, message) = match limit_all(&node.paths, &limits) {
        Ok(()) => (
            Kind::Normal,
            "NodeAllocatableEnforced",
            "Updated Node Allocatable limit across pods".to_owned(),
        ),
        Err(error) => (
            Kind::Warning,
            "FailedNodeAllocatableEnforcement",
            format!("Failed to update Node Allocatable Limits: {error}"),
        ),
    };
    let subject = Subject::node(&node.name);
    events.send(subject, None, kind, reason, message);
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
        // They change with its configuration, which it reads when it starts.
        let is_new = |health: &Health| health.runtime != Part::Up || health.handlers.is_empty();
        let asks = version.is_ok() && is_new(&health.borrow());
        let handlers = match asks {
            true => runtime.handlers().await.ok(),
            false => None,
        };
        health.send_if_modified(|health| {
            let before = health.clone();
            match version {
                Ok(version) => {
                    health.runtime = Part::Up;
                    health.runtime_version = version;
                }
                Err(error) => health.runtime = Part::Down(error.to_string()),
            }
            if let Some(handlers) = handlers {
                let supported = handlers.into_iter().filter(Handler::is_one_by_one);
                health.handlers = supported.map(|handler| handler.name).collect();
            }
            *health != before
        });
        tokio::time::sleep(RUNTIME_CHECK).await;
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
