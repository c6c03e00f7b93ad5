//! Puts the parts of the agent together and runs them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::cluster::{Cluster, Name};
use crate::config::AgentConfig;
use crate::dataplane::{self, LoadError, MapError, MapSizes, Maps, ProbeError, ServiceMaps as _};
use crate::pod::PodTable;
use crate::proxy::{self, LbState, Metrics, ProxyHandle};
use crate::server::introspection::{self, Introspection, SocketError};

/// Why the agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot read the kubeconfig {}; `kernelet join` writes one", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    #[error("cannot make a client of the API server")]
    Client(#[source] Box<kube::Error>),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("the introspection server ended")]
    Introspection(#[source] tonic::transport::Error),
    #[error("cannot wait for signals")]
    Signal(#[source] io::Error),
}

/// Runs the agent until a signal ends it. What it left in the kernel goes on serving.
pub async fn run(config: AgentConfig) -> Result<(), RunError> {
    let node: Name = config.node_name().into();
    let client = client(&config).await?;
    let socket = introspection::bind(&config.socket()).await?;
    let probe = dataplane::probe(config.cgroup_root.as_deref())?;
    let sizes = MapSizes::default();
    let place = dataplane::Config {
        bpf_dir: config.bpf_dir.clone(),
        cgroup: probe.cgroup.clone(),
        sizes,
    };
    let dataplane = dataplane::start(&place, &probe)?;

    let state = LbState::adopt(dataplane.maps.dump()?, rand::random());
    let proxy = ProxyHandle::new(state);
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let cluster = Cluster::start(client);
    let introspection = Introspection::new(
        node.clone(),
        cluster.clone(),
        proxy.clone(),
        Arc::new(Maps::open(&dataplane.dir)?),
        probe.features,
        PodTable::default(),
    );
    info!(%node, adopted = dataplane.adopted, "the agent runs");
    tokio::select! {
        () = proxy::run(cluster, node, proxy, metrics, dataplane.maps) => Ok(()),
        ended = introspection.serve(socket, std::future::pending()) => ended.map_err(RunError::Introspection),
        signal = told_to_end() => signal.map_err(RunError::Signal),
    }
}

async fn client(config: &AgentConfig) -> Result<kube::Client, RunError> {
    let path = config.kubeconfig();
    let failed = |source| RunError::Kubeconfig {
        path: path.clone(),
        source: Box::new(source),
    };
    let kubeconfig = Kubeconfig::read_from(&path).map_err(failed)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(failed)?;
    kube::Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))
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
