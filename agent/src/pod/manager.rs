//! Which pods this node has: one worker for each, and an end for those that the API does not know.

mod admission;
mod statics;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};

use super::archives;
use super::demand::{Demand, Demands};
use super::env::LastRead;
use super::events::Events;
use super::host_ports::Teller;
use super::mirror::Mirror;
use super::paths::is_plain_name;
use super::pull;
use super::shared::{Order, Pokes, Settings, Shared};
use super::spec::{CONFIG_SOURCE, DEFAULT_GRACE, PodView};
use super::static_pods::{self, Found};
use super::table::PodTable;
use super::volumes::Tokens;
use super::worker;
use crate::housekeeping::eviction::Pressures;
use crate::network::PodNetwork;
use crate::network::namespaces::Namespace;
use crate::runtime::{Container, PodRef, Runtime, RuntimeEvent};

/// How long to wait for a runtime that is away.
const RETRY: Duration = Duration::from_secs(1);

/// The running pod half.
pub struct Manager {
    table: PodTable,
    demands: Demands,
    task: tokio::task::JoinHandle<()>,
}

impl Manager {
    /// Starts to run the pods that the API binds to this node. Dropping the manager stops the agent's work, not the pods.
    pub fn start(
        client: Client,
        settings: Settings,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
        table: PodTable,
    ) -> Manager {
        let (demands, demanded) = Demands::channel();
        let asking = (demands.clone(), demanded);
        let running = run(client, settings, runtime, network, table.clone(), asking);
        Manager {
            table,
            demands,
            task: tokio::spawn(running),
        }
    }

    /// By which others ask something of the pods' workers.
    pub fn demands(&self) -> Demands {
        self.demands.clone()
    }

    /// What is known of the pods.
    pub fn table(&self) -> &PodTable {
        &self.table
    }

    /// Runs until the manager ends, which it does by a panic only; that is passed on.
    pub async fn ended(mut self) {
        if let Err(error) = (&mut self.task).await
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Handle {
    id: PodRef,
    orders: watch::Sender<Order>,
    poke: Arc<Notify>,
}

impl Handle {
    /// Whether its pod comes from a file.
    fn is_static(&self) -> bool {
        let order = self.orders.borrow();
        order.pod.as_ref().is_some_and(|pod| pod.is_static())
    }
}

fn full_name(pod: &PodRef) -> (String, String) {
    (pod.namespace.clone(), pod.name.clone())
}

struct Pods {
    shared: Arc<Shared>,
    demands: Demands,
    workers: BTreeMap<String, Handle>,
    tasks: JoinSet<()>,
    /// Whose worker a task is, by uid.
    uids: HashMap<task::Id, String>,
    /// Containers found at start whose pod has no worker yet.
    adopted: BTreeMap<String, Vec<Container>>,
    /// What the node is short of.
    pressures: Pressures,
    /// New pods come too late.
    is_shutting_down: bool,
    /// Pods from files that wait for one of the same name to be gone.
    waiting: Vec<PodView>,
    /// The mirrors that the API has, by namespace and name.
    mirrors: BTreeMap<(String, String), Mirror>,
    /// How many times archives were imported since the start.
    imports: u64,
}

async fn run(
    client: Client,
    settings: Settings,
    runtime: Arc<dyn Runtime>,
    network: Arc<dyn PodNetwork>,
    table: PodTable,
    (demands, mut demanded): (Demands, mpsc::Receiver<Demand>),
) {
    let (first_done, archives_imported) = watch::channel(false);
    let (imported, mut imports) = mpsc::channel(1);
    let images = settings.paths.images();
    // Listening begins before the list is made, so no end is missed in between.
    let mut events = runtime.events();
    let adopted = adopt(runtime.as_ref()).await;
    let mut archives = JoinSet::new();
    archives.spawn(archives::watch_directory(
        runtime.clone(),
        images,
        first_done,
        imported,
    ));

    let node_name = settings.node_name.clone();
    let mut pods = Pods {
        demands,
        shared: Arc::new(Shared {
            host_ports: Teller::new(settings.cluster.clone()),
            events: Events::start(client.clone(), node_name.clone()),
            node_memory: node_memory(),
            client: client.clone(),
            runtime,
            network,
            settings,
            table,
            archives_imported,
            pokes: Pokes::default(),
            tokens: Tokens::default(),
            last_env: LastRead::default(),
            grants: Mutex::default(),
            pulls: Semaphore::new(pull::AT_ONCE),
        }),
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        uids: HashMap::new(),
        adopted,
        pressures: Pressures::default(),
        is_shutting_down: false,
        waiting: Vec::new(),
        mirrors: BTreeMap::new(),
        imports: 0,
    };
    // Before the API is heard: whose containers are whose has to be known by then.
    let (found, mut statics) = mpsc::channel(1);
    if let Some(directory) = pods.shared.settings.static_pods.clone() {
        let read = static_pods::read(&directory, &node_name, &Found::new());
        let before = read.clone().unwrap_or_default();
        if let Some(read) = read {
            pods.static_pods(read.into_values().collect());
        }
        let (node, period) = (node_name.clone(), pods.shared.settings.file_check);
        archives.spawn(static_pods::follow(directory, node, period, before, found));
    }
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut changes = watcher(Api::<Pod>::all(client), config)
        .default_backoff()
        .inspect_err(|error| tracing::warn!(%error, "the watch of pods broke; watching again"))
        .boxed();
    let mut listed = BTreeSet::new();
    loop {
        tokio::select! {
            // Each arm is cancel-safe: what is not taken now stays where it is.
            Some(change) = changes.next() => if let Ok(change) = change { pods.change(change, &mut listed) },
            Some(event) = events.recv() => pods.runtime_event(&event),
            Some(()) = imports.recv() => pods.images_imported(),
            Some(found) = statics.recv() => pods.static_pods(found),
            Some(demand) = demanded.recv() => pods.demand(&demand),
            Some(ended) = pods.tasks.join_next_with_id() => pods.ended(ended),
        }
    }
}

/// The containers of earlier agents, by pod; none of a pod of which only images of its volumes are left. Waits for the runtime: without it nothing can be decided.
async fn adopt(runtime: &dyn Runtime) -> BTreeMap<String, Vec<Container>> {
    loop {
        let found = tokio::try_join!(runtime.list(), runtime.image_holders());
        match found {
            Ok((containers, image_holders)) => {
                let mut by_pod: BTreeMap<String, Vec<Container>> = image_holders
                    .into_iter()
                    .map(|uid| (uid, Vec::new()))
                    .collect();
                for container in containers {
                    by_pod
                        .entry(container.pod.uid.clone())
                        .or_default()
                        .push(container);
                }
                return by_pod;
            }
            Err(error) => tracing::warn!(%error, "cannot begin to run pods; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

impl Pods {
    fn change(&mut self, change: Event<Pod>, listed: &mut BTreeSet<String>) {
        match change {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.extend(pod.metadata.uid.clone());
                self.apply(pod);
            }
            Event::InitDone => self.synced(listed),
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => self.deleted(pod),
        }
    }

    fn apply(&mut self, mut pod: Pod) {
        // Whoever writes a pod's annotations does not make it one that a file of this node gave.
        if let Some(annotations) = &mut pod.metadata.annotations {
            annotations.remove(CONFIG_SOURCE);
        }
        let Some(view) = PodView::new(pod) else {
            return;
        };
        match Mirror::of(&view) {
            // Nor does a pod that runs become a mirror.
            Some(mirror) if !self.workers.contains_key(&view.id.uid) => self.mirrored(mirror),
            _ => self.take(view),
        }
    }

    /// What the API, or a file, says of a pod.
    fn take(&mut self, view: PodView) {
        let uid = view.id.uid.clone();
        if !is_plain_name(&uid) {
            tracing::error!(uid, "a pod's uid is no file name; the pod is left alone");
            return;
        }
        let view = Arc::new(view);
        match self.workers.get(&uid) {
            Some(handle) => {
                handle.orders.send_modify(|order| order.pod = Some(view));
            }
            None => self.spawn(
                view.id.clone(),
                Order {
                    pod: Some(view.clone()),
                    is_rejected: self.is_rejected(&view),
                    evicted: self.refusal(&view),
                    mirror: self.mirrors.get(&full_name(&view.id)).cloned(),
                    ..Order::default()
                },
            ),
        }
    }

    fn spawn(&mut self, id: PodRef, order: Order) {
        let look = self.look_at_node(&order);
        let containers = self.adopted.remove(&id.uid).unwrap_or_default();
        self.spawn_with(id, order, std::future::ready(containers), look);
    }

    fn spawn_with(
        &mut self,
        id: PodRef,
        mut order: Order,
        containers: impl Future<Output = Vec<Container>> + Send + 'static,
        is_evicted: impl Future<Output = bool> + Send + 'static,
    ) {
        order.imports = self.imports;
        let uid = id.uid.clone();
        let (orders, receiver) = watch::channel(order);
        let poke = Arc::new(Notify::new());
        self.workers.insert(
            uid.clone(),
            Handle {
                id: id.clone(),
                orders,
                poke: poke.clone(),
            },
        );
        let shared = self.shared.clone();
        let mut evicted = receiver.clone();
        let task = self.tasks.spawn(async move {
            let containers = containers.await;
            if is_evicted.await {
                // An error says that the manager is gone, and with it the agent.
                let _ = evicted.wait_for(|order| order.evicted.is_some()).await;
            }
            worker::run(shared, id, containers, receiver, poke).await;
        });
        self.uids.insert(task.id(), uid);
    }

    /// A worker has done its work, or died: then another one takes the pod over as a new agent would.
    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let uid = self.uids.remove(&task).unwrap_or_default();
        let (Some(handle), Err(error)) = (self.workers.remove(&uid), ended) else {
            self.start_waiting();
            return;
        };
        let id = handle.id;
        tracing::error!(%error, pod = id.name, namespace = id.namespace, "a pod's worker died; another takes over");
        let order = handle.orders.borrow().clone();
        let runtime = self.shared.runtime.clone();
        let found = async move {
            tokio::time::sleep(RETRY).await;
            adopt(runtime.as_ref())
                .await
                .remove(&uid)
                .unwrap_or_default()
        };
        self.spawn_with(id, order, found, std::future::ready(false));
    }

    /// The object of a pod is gone without this node's doing: its containers follow.
    fn vanished(&mut self, uid: &str) {
        let Some(handle) = self.workers.get(uid) else {
            return;
        };
        handle.orders.send_modify(|order| {
            let grace = order.pod.as_ref().map_or(DEFAULT_GRACE, |pod| pod.grace());
            if order.vanished_by.is_none() {
                order.vanished_by = Timestamp::now().checked_add(grace).ok();
            }
        });
    }

    /// The whole list has arrived: only now does an absence mean something.
    fn synced(&mut self, listed: &BTreeSet<String>) {
        let unknown: Vec<String> = self
            .workers
            .keys()
            .filter(|uid| !listed.contains(*uid) && !self.workers[*uid].is_static())
            .cloned()
            .collect();
        for uid in unknown {
            self.vanished(&uid);
        }
        self.mirrors
            .retain(|_, mirror| listed.contains(&mirror.id.uid));
        for handle in self.workers.values().filter(|handle| handle.is_static()) {
            let mirror = self.mirrors.get(&full_name(&handle.id)).cloned();
            handle.orders.send_if_modified(|order| {
                let differs = order.mirror != mirror;
                order.mirror = mirror;
                differs
            });
        }
        for id in self.orphans() {
            tracing::info!(
                pod = id.name,
                namespace = id.namespace,
                uid = id.uid,
                "removing what is left of a pod that is gone"
            );
            let by = Timestamp::now().checked_add(DEFAULT_GRACE).ok();
            self.spawn(
                id,
                Order {
                    vanished_by: by,
                    ..Order::default()
                },
            );
        }
        self.shared.host_ports.expect(self.workers.keys().cloned());
    }

    /// Pods without a worker of which containers, images of volumes, pins, logs or directories are left.
    fn orphans(&self) -> Vec<PodRef> {
        let unnamed = |uid: &String| PodRef {
            uid: uid.clone(),
            namespace: String::new(),
            name: String::new(),
        };
        let of_containers = self.adopted.iter().map(|(uid, containers)| {
            let first = containers.first();
            first.map_or_else(|| unnamed(uid), |container| container.pod.clone())
        });
        let paths = &self.shared.settings.paths;
        let of_logs = paths.all_logs().into_iter().map(|(_, pod)| pod);
        let mut found: BTreeMap<String, PodRef> = of_logs
            .chain(of_containers)
            .map(|pod| (pod.uid.clone(), pod))
            .collect();
        let pins = Namespace::ALL.map(|namespace| paths.pins(namespace));
        for directory in pins.into_iter().chain([paths.pods()]) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let uid = entry.file_name().to_string_lossy().into_owned();
                found.entry(uid).or_insert_with_key(unnamed);
            }
        }
        found
            .into_values()
            .filter(|pod| !self.workers.contains_key(&pod.uid))
            .collect()
    }

    /// Wakes the workers to look at the world; most find nothing new.
    fn runtime_event(&self, event: &RuntimeEvent) {
        match event {
            RuntimeEvent::Listening => self
                .workers
                .values()
                .for_each(|handle| handle.poke.notify_one()),
            RuntimeEvent::Exited { id } => self.shared.pokes.wake(id),
        }
    }

    fn demand(&mut self, demand: &Demand) {
        match demand {
            Demand::Evict { uid, eviction } => {
                if let Some(handle) = self.workers.get(uid) {
                    let evicted = |order: &mut Order| {
                        order.evicted.get_or_insert_with(|| eviction.clone());
                    };
                    handle.orders.send_modify(evicted);
                }
            }
            Demand::Admit(pressures) => self.pressures = *pressures,
            Demand::ShutDown(is_shutting_down) => self.is_shutting_down = *is_shutting_down,
            Demand::DiscardDead { until } => {
                for handle in self.workers.values() {
                    let discard = |order: &mut Order| order.discard_until = Some(*until);
                    handle.orders.send_modify(discard);
                }
            }
        }
    }

    fn images_imported(&mut self) {
        self.imports += 1;
        for handle in self.workers.values() {
            handle
                .orders
                .send_modify(|order| order.imports = self.imports);
        }
    }
}

/// The machine's memory in bytes.
fn node_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|value| {
            value
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<f64>()
                .ok()
        })
        .map_or(0.0, |kilobytes| kilobytes * 1024.0)
}
