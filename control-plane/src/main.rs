//! `kernelet-control-plane`: arguments to parts, nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use axum::Router;
use clap::Parser;
use kernelet_control_plane::admission::service_ip::{Ranges, ServiceAddresses};
use kernelet_control_plane::admission::{Admission, reservations};
use kernelet_control_plane::api::peers::Peers;
use kernelet_control_plane::api::registry::Registry;
use kernelet_control_plane::api::{
    self, Api, KubeletClient, audit, bootstrap, default_roles, server,
};
use kernelet_control_plane::auth::pki::{Pki, PkiConfig};
use kernelet_control_plane::auth::rbac::Policies;
use kernelet_control_plane::auth::tokens::Authority;
use kernelet_control_plane::auth::{Authenticator, Ca, User, csr, shared, tls};
use kernelet_control_plane::controllers::{self, Accounts, ControllersConfig, PodRanges};
use kernelet_control_plane::lead::Candidate;
use kernelet_control_plane::parts::Parts;
use kernelet_control_plane::resources::Family;
use kernelet_control_plane::resources::validate::is_plain;
use kernelet_control_plane::scheduler::{self, SchedulerConfig};
use kernelet_control_plane::store::cache::Cache;
use kernelet_control_plane::store::compaction;
use kernelet_control_plane::store::embedded::Embedded;
use kernelet_control_plane::store::etcd::{ConnectError, Etcd, EtcdConfig};
use kernelet_control_plane::store::{Store, StoreError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Between two looks at whether history has to be shortened.
const COMPACTION: Duration = Duration::from_secs(30);
/// How long etcd is waited for at a start. Upstream's server takes about as long.
const PATIENCE_WITH_ETCD: Duration = Duration::from_secs(20);

/// A Kubernetes control plane: API server, scheduler and controllers in one process.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where keys, certificates and the embedded store are kept.
    #[arg(long, env = "KERNELET_DATA_DIR")]
    data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// The address that nodes and clients reach this server at [default: the one it listens on, or this machine's].
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Keep the cluster's state in this etcd instead of the data directory; several for a cluster of it.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    etcd_endpoints: Vec<String>,
    /// The authority that etcd's certificates come from, PEM.
    #[arg(long, requires = "etcd_endpoints", value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// The certificate to show to etcd, PEM.
    #[arg(long, requires = "etcd_keyfile", value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(long, requires = "etcd_certfile", value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// Pods' addresses: one range, or one of IPv4 and one of IPv6 with a comma between; every node gets a part of each. The
    /// first is of the family that a pod's first address has.
    #[arg(
        long,
        visible_alias = "cluster-cidr",
        default_value = "10.244.0.0/16",
        value_name = "CIDR[,CIDR]"
    )]
    pod_cidr: PodRanges,
    /// How long the prefix of a node's part of the IPv4 range is [default: 24].
    #[arg(long, value_name = "LENGTH")]
    node_cidr_mask_size_ipv4: Option<u8>,
    /// How long the prefix of a node's part of the IPv6 range is [default: 64].
    #[arg(long, value_name = "LENGTH")]
    node_cidr_mask_size_ipv6: Option<u8>,
    /// Services' addresses: one range, or one of IPv4 and one of IPv6 with a comma between. The first is where a service
    /// gets its address unless it says otherwise.
    #[arg(long, default_value = "10.96.0.0/12", value_name = "CIDR[,CIDR]")]
    service_cidr: Ranges,
    /// Note in this file who asked for what: one event of audit.k8s.io/v1 a line, without bodies [default: nowhere].
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// Which requests are noted, a Policy of audit.k8s.io/v1 [default: all].
    #[arg(long, requires = "audit_log_path", value_name = "FILE")]
    audit_policy_file: Option<PathBuf>,
    /// Megabytes after which the file is set aside and a new one begun.
    #[arg(long, default_value_t = 100, value_name = "MEGABYTES", value_parser = clap::value_parser!(u64).range(1..))]
    audit_log_maxsize: u64,
    /// How many files that were set aside are kept; 0 is all.
    #[arg(long, default_value_t = 0, value_name = "FILES")]
    audit_log_maxbackup: usize,
    /// Elect which of the control planes that share an etcd runs the scheduler, and which the controllers [default: true with
    /// --etcd-endpoints].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    leader_elect: Option<bool>,
    /// The cluster's DNS domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Seconds without a sign of life after which a node is taken to be gone.
    #[arg(long, default_value_t = 40, value_name = "SECONDS")]
    node_monitor_grace_period: u64,
}

#[tokio::main(worker_threads = 4)]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("KERNELET_LOG")
        .unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernelet-control-plane: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;

    let listener = server::listen(args.listen).await?;
    let advertised = SocketAddr::new(
        args.advertise_address
            .unwrap_or_else(|| reachable_address(args.listen.ip())),
        listener
            .local_addr()
            .context("cannot tell the listening address")?
            .port(),
    );
    let (services, server) = (args.service_cidr.primary(), Family::of(advertised.ip()));
    anyhow::ensure!(
        services == server,
        "the first range of --service-cidr is of {}, and this server's address {} of {}: pods would not reach it by the service kubernetes",
        services.as_str(),
        advertised.ip(),
        server.as_str(),
    );
    let pods = args.pod_cidr.clone();
    let pods = pods.cut(args.node_cidr_mask_size_ipv4, args.node_cidr_mask_size_ipv6)?;
    pods.apart_from(args.service_cidr.iter())?;
    pods.without_machine(advertised.ip())?;
    if !is_plain(advertised.ip()) {
        tracing::warn!(
            address = %advertised.ip(),
            "only this machine reaches that address, so the service kubernetes gets no endpoint; name another with --advertise-address"
        );
    }

    let audit = args.audit_log_path.clone().map(|path| {
        audit::Log::open(audit::Config {
            path,
            policy: args.audit_policy_file.clone(),
            size: args.audit_log_maxsize.saturating_mul(1 << 20),
            backups: args.audit_log_maxbackup,
        })
    });
    let audit = audit.transpose()?;
    let pki_config = PkiConfig {
        data_dir: args.data_dir.clone(),
        advertise: advertised.ip(),
        port: advertised.port(),
        cluster_domain: args.cluster_domain.clone(),
        hostname: hostname(),
    };
    let pki = Pki::open(&pki_config, SystemTime::now())?;

    let mut parts = Parts::new(stop.clone());
    let store = open_store(&args).await?;
    let is_shared = !args.etcd_endpoints.is_empty();
    let cache = patiently(|| load(&store, is_shared, &pki)).await?;
    parts.spawn(
        "the compaction",
        compaction::run(store.clone(), compaction::Policy::default(), COMPACTION),
    );
    let addresses = ServiceAddresses::new(args.service_cidr.clone());
    addresses
        .follow(&cache)
        .await
        .context("cannot read the services")?;
    let policies = Arc::new(Policies::default());
    let registry = Registry {
        admission: Admission::new(
            store.clone(),
            cache.clone(),
            addresses.clone(),
            policies.clone(),
        ),
        store,
        cache,
        policies,
    };
    let mut kubernetes = bootstrap::stored_addresses(&registry)
        .await
        .context("cannot read the service kubernetes")?;
    for leftover in bootstrap::leftovers(&kubernetes, &args.service_cidr, advertised.ip()) {
        tracing::warn!("{leftover}");
    }
    // If somebody deletes it, it is made with this address.
    kubernetes.insert(args.service_cidr.first_address());
    let serving = pki.serving(&pki_config, &kubernetes, SystemTime::now())?;
    let tls = tls::server_config(&serving, pki.ca.certificate())?;
    let kubelet = KubeletClient::new(&pki.kubelet_client, pki.ca.certificate())?;
    let issuer = format!("https://kubernetes.default.svc.{}", args.cluster_domain);
    let tokens = Arc::new(Authority::new(pki.token_keys, issuer));
    let api = Api::new(
        registry,
        Authenticator::new(pki.join_token.clone(), tokens.clone()),
        kubelet,
        advertised.to_string(),
        audit,
    );
    let mut peers = is_shared.then(|| Peers::new(advertised));
    let (ranges, servers) = (&args.service_cidr, peers.as_mut());
    bootstrap::keep_once(&api.registry, ranges, advertised, servers)
        .await
        .context("cannot make the system's objects")?;
    default_roles::ensure(&api.registry)
        .await
        .context("cannot make the default roles")?;
    let Registry {
        policies, cache, ..
    } = &api.registry;
    let following = policies.follow(cache).await;
    following.context("cannot read the roles")?;
    let router = api::router(api.clone());

    let accounts = Accounts {
        authority: pki.ca.certificate().to_owned(),
        tokens,
    };
    let config = ControllersConfig {
        node_grace_period: Duration::from_secs(args.node_monitor_grace_period),
        service_ranges: args.service_cidr.iter().copied().collect(),
        reserved: pki_config.reserved(addresses.reserved()),
        ..ControllersConfig::new(pods, accounts, signer(pki.ca))
    };
    if args.leader_elect.unwrap_or(is_shared) {
        api.health.set_elects();
        start_candidates(&mut parts, &router, config, &pki_config.hostname, &stop);
    } else {
        start_parts(&mut parts, &router, config, &stop);
    }
    let (kept, ranges, told) = (api.clone(), args.service_cidr.clone(), stop.clone());
    parts.spawn_ending("the keeper of the system's objects", async move {
        let keep = bootstrap::keep(&kept.registry, &ranges, advertised, peers.as_mut());
        told.run_until_cancelled(keep).await;
        if let Some(peers) = peers
            && let Err(error) = bootstrap::leave(&kept.registry, &ranges, peers).await
        {
            tracing::warn!(
                error = error.message,
                "the others see only later that this server is gone"
            );
        }
    });
    api.health.set_ready();
    tracing::info!(listen = %args.listen, %advertised, kubeconfig = %pki.admin_kubeconfig.display(), "serving");
    let stopping = api.clone();
    let told = stop.clone();
    tokio::spawn(async move {
        told.cancelled().await;
        stopping.health.set_stopping();
    });
    let ((), ended) = tokio::join!(server::serve(listener, tls, router, stop), parts.watch());
    tracing::info!("stopped");
    Ok(ended?)
}

/// The error and its causes in one sentence, without saying anything twice.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

async fn open_store(args: &Args) -> anyhow::Result<Arc<dyn Store>> {
    if args.etcd_endpoints.is_empty() {
        return Ok(Arc::new(Embedded::open(&args.data_dir.join("store.redb"))?));
    }
    let config = EtcdConfig {
        endpoints: args.etcd_endpoints.clone(),
        ca_file: args.etcd_cafile.clone(),
        cert_file: args.etcd_certfile.clone(),
        key_file: args.etcd_keyfile.clone(),
    };
    let give_up = Instant::now() + PATIENCE_WITH_ETCD;
    loop {
        let error = match Etcd::connect(&config).await {
            // While its members have no leader, nothing can be read.
            Ok(etcd) => match etcd.revision().await {
                Ok(_) => return Ok(Arc::new(etcd)),
                Err(error) => anyhow::Error::new(error),
            },
            Err(error @ ConnectError::Unreachable { .. }) => error.into(),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= give_up {
            return Err(error);
        }
        // Machines that start together do not start their programs in an order.
        tracing::warn!(error = explain(&error), "etcd does not answer yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What is in the store, once all control planes that share it agree.
async fn load(store: &Arc<dyn Store>, is_shared: bool, pki: &Pki) -> anyhow::Result<Arc<Cache>> {
    if is_shared {
        shared::agree(&**store, pki).await?;
    }
    reservations::repair(&**store)
        .await
        .context("cannot see which addresses are in use")?;
    Cache::start(store.clone(), api::index)
        .await
        .context("cannot load the store")
}

/// Asks again while the store is away: etcd's members answer nobody until they have chosen another leader.
async fn patiently<T, F>(ask: impl Fn() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let give_up = Instant::now() + PATIENCE_WITH_ETCD;
    loop {
        let error = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let is_away = |it: &(dyn std::error::Error + 'static)| {
            matches!(it.downcast_ref(), Some(StoreError::Unavailable(_)))
        };
        if !error.chain().any(is_away) || Instant::now() >= give_up {
            return Err(error);
        }
        tracing::warn!(
            error = explain(&error),
            "the store does not answer; asking again"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Scheduler and controllers: clients of the API like any other, but without a socket in between.
fn start_parts(
    parts: &mut Parts,
    router: &Router,
    config: ControllersConfig,
    stop: &CancellationToken,
) {
    let scheduler = api::local_client(router.clone(), User::scheduler());
    parts.spawn(
        "the scheduler",
        scheduler::run(scheduler, SchedulerConfig::default(), stop.clone()),
    );
    let controllers = api::local_client(router.clone(), User::controller_manager());
    parts.spawn(
        "the controllers",
        controllers::run(controllers, config, stop.clone()),
    );
}

/// The same where others may run them: whoever has the Lease does.
fn start_candidates(
    parts: &mut Parts,
    router: &Router,
    config: ControllersConfig,
    hostname: &str,
    stop: &CancellationToken,
) {
    let identity = format!("{hostname}_{}", uuid::Uuid::new_v4());
    let candidate = |user: User, lease| {
        let client = api::local_client(router.clone(), user);
        Candidate::new(client, lease, identity.clone())
    };
    let scheduler = candidate(User::scheduler(), "kube-scheduler");
    let (api, told) = (router.clone(), stop.clone());
    parts.spawn_ending("the scheduler", async move {
        let part = |term, end| {
            let client = api::leaders_client(api.clone(), User::scheduler(), term);
            scheduler::run(client, SchedulerConfig::default(), end)
        };
        scheduler.run(told, part).await;
    });
    let controllers = candidate(User::controller_manager(), "kube-controller-manager");
    let (api, told) = (router.clone(), stop.clone());
    parts.spawn_ending("the controllers", async move {
        let part = |term, end| {
            let client = api::leaders_client(api.clone(), User::controller_manager(), term);
            controllers::run(client, config.clone(), end)
        };
        controllers.run(told, part).await;
    });
}

fn signer(ca: Ca) -> controllers::Signer {
    Arc::new(move |request, now| csr::sign_csr(&ca, request, now))
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::spawn(async move {
        // Cancel-safe: both only wait.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// The address itself if it is one, else the one that this machine would speak from. Nothing is sent to find out.
fn reachable_address(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    // Of the addresses for documentation.
    let probes: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), [192, 0, 2, 1].into()),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
        ),
    ];
    let speaks_from = |(any, somewhere)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((somewhere, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let found = probes.into_iter().find_map(speaks_from);
    found.unwrap_or(Ipv4Addr::LOCALHOST.into())
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_again_and_one_that_failed_is_not() {
        let asked = Cell::new(0);
        let after = async |first: StoreError| {
            let first = Cell::new(Some(first));
            asked.set(0);
            let ask = || async {
                asked.set(asked.get() + 1);
                first.take().map_or(Ok(()), Err).context("cannot look")
            };
            (patiently(ask).await.is_ok(), asked.get())
        };
        let away = StoreError::Unavailable("no leader".into());
        assert_eq!(after(away).await, (true, 2));
        let failed = StoreError::Failed("broken".into());
        assert_eq!(after(failed).await, (false, 1));
    }
}
