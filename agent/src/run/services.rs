//! The half of the agent that routes services: programs and maps in the kernel, and what keeps them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use super::status::{shown, ways};
use super::{Parts, RunError, paths, unfailing};
use crate::chain::chain;
use crate::cluster::{Cluster, Name};
use crate::config::AgentConfig;
use crate::dataplane::{
    self, ClosingMaps, Connections, Events, Feature, Fill, MapSizes, Maps, PodLinks, Probe,
    Retired, ServiceMaps as _, StaleSockets, TakeOver, Uplinks,
};
use crate::events;
use crate::network::{node_addresses, uplinks};
use crate::node::status::Part;
use crate::observe::{self, Clients, Flows, MapReader, Publisher, Sources};
use crate::pod::{Loads, PodTable};
use crate::proxy::feedback::Kernel;
use crate::proxy::{self, LbState, Metrics, ProxyHandle};
use crate::server::introspection::{self, Introspection};
use crate::server::{ComponentHealth, health_checks};

/// Between two attempts to let new service programs take over.
const TAKE_OVER_RETRY: Duration = Duration::from_secs(5);
/// Between two looks for rows of sockets that the programs cannot remove: longer than an ended connection may linger.
const SOCKET_SWEEP: Duration = Duration::from_secs(1800);
/// Between two looks for translated connections that are over.
const CONNECTION_SWEEP: Duration = Duration::from_secs(15);

/// The half of the agent that routes services.
pub(super) struct Services<'a> {
    pub(super) config: &'a AgentConfig,
    pub(super) node: &'a Name,
    pub(super) cluster: &'a Cluster,
    /// The node's addresses among those of its uplinks.
    pub(super) addresses: &'a [IpAddr],
    /// Directory of the pins of the pods' network namespaces.
    pub(super) namespaces: PathBuf,
}

impl Services<'_> {
    /// Brings the programs into the kernel, and starts what keeps their maps as the cluster wants them. Gives what shows
    /// them to people.
    pub(super) fn start(
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
