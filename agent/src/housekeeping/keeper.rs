//! The task that looks at the node from time to time, and does what the pure parts say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::eviction::{Memory, Observations, Rules, Threshold};
use super::images::{ImageMemory, ImageRules, to_free};
use super::local_storage::{PodDisk, exceeded, is_limited};
use super::observe;
use super::ranking::{Candidate, ContainerUse, message, rank};
use super::signal::{Pressure, Signal};
use crate::events::{Events, Kind, Subject};
use crate::node::status::{Health, Image};
use crate::pod::disk;
use crate::pod::spec::PodView;
use crate::pod::usage::{self, PodUsage};
use crate::pod::{Demand, Demands, EVICTED, Eviction, LEAST_GRACE, Paths, PodTable};
use crate::runtime::{DiskUsage, ImageSummary, Runtime, RuntimeError};

/// How often a node is looked at, as upstream.
pub const PERIOD: Duration = Duration::from_secs(10);
/// After so many looks the images are listed.
const LIST_IMAGES: u32 = 6;
/// After so many looks images may be collected: five minutes, as upstream.
const COLLECT_IMAGES: u32 = 30;
/// An evicted pod is waited for so long before another one is.
const EVICTION: SignedDuration = SignedDuration::from_secs(30);

/// What is needed to keep the node from running short.
pub struct Keeper {
    /// How often the node is looked at.
    pub period: Duration,
    /// The node's name.
    pub node: String,
    pub root_dir: PathBuf,
    pub paths: Paths,
    pub pods: PodTable,
    pub runtime: Arc<dyn Runtime>,
    pub demands: Demands,
    pub rules: Rules,
    pub image_rules: ImageRules,
    /// Told of the node's conditions and images.
    pub health: watch::Sender<Health>,
    pub events: Events,
}

/// What it remembers.
#[derive(Default)]
struct State {
    eviction: Memory,
    images: ImageMemory,
    /// Of images and containers; empty until the runtime has said it.
    image_dir: Option<PathBuf>,
    /// The pod that is on its way out, and until when it is waited for.
    leaving: Option<(String, Timestamp)>,
    /// Since the node is short of disk, what nobody needs was asked to go.
    has_reclaimed: bool,
}

impl Keeper {
    /// Looks after the node until the task is dropped.
    pub async fn run(self) {
        let mut state = State::default();
        for round in (0_u32..).cycle() {
            if round.is_multiple_of(LIST_IMAGES) {
                let collects = round.is_multiple_of(COLLECT_IMAGES);
                if let Err(error) = self.images(&mut state, collects).await {
                    tracing::warn!(%error, "the images are not looked after");
                }
            }
            self.look(&mut state).await;
            tokio::time::sleep(self.period).await;
        }
    }

    /// Takes in which images there are, and removes some where their file system is too full.
    async fn images(&self, state: &mut State, collects: bool) -> Result<(), RuntimeError> {
        let images = self.runtime.images().await?;
        let now = Timestamp::now();
        state.images.look(&images, now);
        self.tell_images(&images);
        if !collects {
            return Ok(());
        }
        let directory = self.image_dir(state).await;
        let Ok([disk, _]) = observe::disk(&directory) else {
            return Ok(());
        };
        let Some(bytes) = to_free(&self.image_rules, disk) else {
            return Ok(());
        };
        tracing::info!(
            bytes,
            "the images' file system is over the high threshold: collecting images"
        );
        let min_age = self.image_rules.min_age;
        let chosen = state.images.choose(&images, bytes, min_age, now);
        let freed = self.remove(&chosen).await;
        if freed < bytes {
            let text = format!(
                "Failed to garbage collect required amount of images. Attempted to free {bytes} bytes, but only found {freed} bytes eligible to free."
            );
            self.tell("FreeDiskSpaceFailed", text);
        }
        self.tell_images(&self.runtime.images().await?);
        Ok(())
    }

    /// Removes images; says how many bytes they had.
    async fn remove(&self, images: &[&ImageSummary]) -> u64 {
        let mut freed = 0;
        for image in images {
            match self.runtime.remove_image(&image.digest).await {
                Ok(()) => {
                    tracing::info!(
                        image = image.names.first(),
                        digest = image.digest,
                        "removed an image"
                    );
                    freed += image.size_bytes;
                }
                Err(error) => tracing::warn!(%error, "an image is not removed"),
            }
        }
        freed
    }

    fn tell_images(&self, images: &[ImageSummary]) {
        let told = images.iter().map(|image| Image {
            names: image.names.clone(),
            size_bytes: i64::try_from(image.size_bytes).unwrap_or(i64::MAX),
        });
        let told: Vec<Image> = told.collect();
        self.health.send_if_modified(|health| {
            let differs = health.images != told;
            health.images = told;
            differs
        });
    }

    async fn image_dir(&self, state: &mut State) -> PathBuf {
        if state.image_dir.is_none() {
            match self.runtime.image_directory().await {
                // A runtime that does not say has them where most things are.
                Ok(found) => state.image_dir = found.or_else(|| Some(self.root_dir.clone())),
                Err(error) => tracing::debug!(%error, "where images are is not known yet"),
            }
        }
        let known = state.image_dir.clone();
        known.unwrap_or_else(|| self.root_dir.clone())
    }

    async fn look(&self, state: &mut State) {
        let image_dir = self.image_dir(state).await;
        let see = || observe::all(&self.root_dir, &image_dir);
        let seen = see();
        state.eviction.look(&self.rules, &seen, Timestamp::now());
        self.tell_pressures(state).await;
        if self.is_waiting(state) {
            return;
        }
        let Some(due) = state.eviction.due(&self.rules, Timestamp::now()).cloned() else {
            // What takes long to measure waits until the node is well.
            self.keep_limits().await;
            state.has_reclaimed = false;
            return;
        };
        let resource = due.signal.resource();
        tracing::warn!(resource, "the node is short of something: reclaiming");
        self.tell(
            "EvictionThresholdMet",
            format!("Attempting to reclaim {resource}"),
        );
        if due.signal.pressure() == Pressure::Disk {
            self.reclaim(state).await;
            // Dead containers, and the images that they hold, go in their pods' own time. Before that no pod does.
            if !std::mem::replace(&mut state.has_reclaimed, true) {
                return;
            }
            state.eviction.look(&self.rules, &see(), Timestamp::now());
            if state.eviction.due(&self.rules, Timestamp::now()).is_none() {
                return;
            }
        }
        self.evict_one(state, &due, &seen, &image_dir).await;
    }

    async fn tell_pressures(&self, state: &State) {
        let pressures = state.eviction.pressures();
        let changed = self.health.send_if_modified(|health| {
            let differs = health.pressures != pressures;
            health.pressures = pressures;
            differs
        });
        if changed {
            self.demands.ask(Demand::Admit(pressures)).await;
        }
    }

    /// Removes what no pod needs: containers that have ended, and all images that nobody uses.
    async fn reclaim(&self, state: &mut State) {
        let until = Timestamp::now().saturating_add(SignedDuration::from_secs(10));
        let until = until.unwrap_or(Timestamp::MAX);
        self.demands.ask(Demand::DiscardDead { until }).await;
        let removed = async {
            let images = self.runtime.images().await?;
            let now = Timestamp::now();
            state.images.look(&images, now);
            let chosen = state
                .images
                .choose(&images, u64::MAX, self.image_rules.min_age, now);
            self.remove(&chosen).await;
            Ok::<_, RuntimeError>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "no images are removed");
        }
    }

    /// Whether the last one that was evicted is still there.
    fn is_waiting(&self, state: &mut State) -> bool {
        let Some((uid, until)) = &state.leaving else {
            return false;
        };
        let running = |uid: &str| {
            let all = self.pods.list();
            let mut own = all
                .iter()
                .filter(|pod| pod.uid == uid)
                .flat_map(|pod| &pod.containers);
            own.any(|container| container.state == "running")
        };
        let waits = Timestamp::now() < *until && running(uid);
        if !waits {
            state.leaving = None;
        }
        waits
    }

    async fn evict_one(
        &self,
        state: &mut State,
        due: &Threshold,
        seen: &Observations,
        image_dir: &Path,
    ) {
        let shared = observe::is_shared(&self.root_dir, image_dir);
        let candidates = match due.signal.pressure() {
            Pressure::Disk => self.disk_candidates(due.signal, shared).await,
            Pressure::Memory | Pressure::Pid => self.usage_candidates().await,
        };
        let ranked = rank(due.signal, candidates);
        let Some(first) = ranked.first() else {
            tracing::error!(resource = due.signal.resource(), "no pod can be evicted");
            return;
        };
        let text = message(due, seen.get(&due.signal).copied(), first);
        let grace = match due.is_hard {
            true => SignedDuration::ZERO,
            false => first.pod.grace().min(self.rules.max_pod_grace),
        };
        self.evict(&first.pod, text, grace).await;
        let until = Timestamp::now().saturating_add(grace + EVICTION);
        let uid = first.pod.id.uid.clone();
        state.leaving = Some((uid, until.unwrap_or(Timestamp::MAX)));
    }

    async fn evict(&self, pod: &PodView, message: String, grace: SignedDuration) {
        let by = Timestamp::now().saturating_add(grace.max(LEAST_GRACE));
        let eviction = Eviction {
            reason: EVICTED,
            message,
            by: by.unwrap_or(Timestamp::MAX),
        };
        let uid = pod.id.uid.clone();
        self.demands.ask(Demand::Evict { uid, eviction }).await;
    }

    /// Evicts the pods that use more of the disk than they may; says whether there was one.
    async fn keep_limits(&self) -> bool {
        let mut any = false;
        let limited = self.pods.active().into_iter();
        for pod in limited.filter(|pod| is_limited(pod) && !pod.is_critical()) {
            let (disk, _) = self.disk_of(&pod).await;
            if let Some(why) = exceeded(&pod, &disk) {
                self.evict(&pod, why, SignedDuration::ZERO).await;
                any = true;
            }
        }
        any
    }

    /// What a pod has on the disk, and what of that is in its containers' writable layers.
    async fn disk_of(&self, pod: &Arc<PodView>) -> (PodDisk, DiskUsage) {
        let (paths, of) = (self.paths.clone(), pod.clone());
        let measured = tokio::task::spawn_blocking(move || disk::measure(&paths, &of)).await;
        let files = measured.unwrap_or_default();
        let mut found = PodDisk::default();
        let all = files.logs.values().chain(files.volumes.values());
        found.inodes = all.map(|usage| usage.inodes).sum();
        let bytes = |(name, usage): (String, DiskUsage)| (name, usage.bytes);
        found.containers = files.logs.into_iter().map(bytes).collect();
        found.volumes = files.volumes.into_iter().map(bytes).collect();
        let mut layers = DiskUsage::default();
        let summaries = self.pods.list();
        let own = summaries.iter().filter(|summary| summary.uid == pod.id.uid);
        for container in own.flat_map(|summary| &summary.containers) {
            if container.id.is_empty() {
                continue;
            }
            match self.runtime.written(&container.id).await {
                Ok(Some(written)) => {
                    layers.bytes += written.bytes;
                    layers.inodes += written.inodes;
                    *found.containers.entry(container.name.clone()).or_default() += written.bytes;
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a container's layer is not measured"),
            }
        }
        found.inodes += layers.inodes;
        (found, layers)
    }

    async fn disk_candidates(&self, signal: Signal, shared: bool) -> Vec<Candidate> {
        let of_images = matches!(signal, Signal::ImagefsAvailable | Signal::ImagefsInodesFree);
        let mut found = Vec::new();
        for pod in self.pods.active() {
            let (disk, layers) = self.disk_of(&pod).await;
            let (bytes, inodes) = match (shared, of_images) {
                (true, _) => (disk.total(), disk.inodes),
                (false, true) => (layers.bytes, layers.inodes),
                (false, false) => (disk.total() - layers.bytes, disk.inodes - layers.inodes),
            };
            let containers = disk
                .containers
                .into_iter()
                .map(|(name, bytes)| ContainerUse {
                    name,
                    disk: Some(bytes),
                    memory: None,
                });
            found.push(Candidate {
                pod,
                memory: None,
                disk: Some(bytes),
                inodes: Some(inodes),
                processes: None,
                containers: containers.collect(),
            });
        }
        found
    }

    async fn usage_candidates(&self) -> Vec<Candidate> {
        let (pods, paths) = (self.pods.clone(), self.paths.clone());
        let read = tokio::task::spawn_blocking(move || usage::read(&pods, &paths).pods).await;
        let usages = read.unwrap_or_default().into_iter();
        let mut by_uid: BTreeMap<String, PodUsage> =
            usages.map(|usage| (usage.pod.uid.clone(), usage)).collect();
        let candidate = |pod: Arc<PodView>| {
            let usage = by_uid.remove(&pod.id.uid);
            let containers = usage.iter().flat_map(|usage| &usage.containers);
            let containers = containers.map(|(container, usage)| ContainerUse {
                name: container.name.clone(),
                memory: Some(usage.memory.working_set),
                disk: None,
            });
            Candidate {
                pod,
                memory: usage.as_ref().map(|usage| usage.all.memory.working_set),
                disk: None,
                inodes: None,
                processes: usage.as_ref().and_then(|usage| usage.processes),
                containers: containers.collect(),
            }
        };
        self.pods.active().into_iter().map(candidate).collect()
    }

    /// Tells people of the node, who ask it what happened.
    fn tell(&self, reason: &'static str, text: String) {
        let subject = Subject::node(&self.node);
        self.events.send(subject, None, Kind::Warning, reason, text);
    }
}
