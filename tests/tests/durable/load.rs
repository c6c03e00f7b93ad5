//! Clients that write and read a few ConfigMaps, watch them, and note down what they asked and heard.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ObjectMeta;
use kube::runtime::watcher;
use kube::{Client, Config};

use crate::history::{Operation, Outcome, Revision, Watched, What};

/// What is written and read.
pub const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// Whoever hears nothing for so long gives up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two operations of one client.
const PAUSE: Duration = Duration::from_millis(15);
const AFTER_AN_ERROR: Duration = Duration::from_millis(200);

/// A client that asks once: what it would ask again it could not account for.
pub async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options);
    let mut config = config.await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

/// What all clients noted.
#[derive(Clone)]
pub struct Record {
    start: Instant,
    operations: Arc<Mutex<Vec<Operation>>>,
    is_over: Arc<AtomicBool>,
}

impl Record {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            operations: Arc::default(),
            is_over: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn note(&self, began: u64, what: What) {
        let ended = self.now();
        let operation = Operation { began, ended, what };
        self.operations.lock().unwrap().push(operation);
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap().clone()
    }

    /// Tells the clients to end after what they are at: a write without a note would be nobody's.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let operations = self.operations.lock().unwrap();
        let is_acknowledged = |operation: &&Operation| {
            let outcome = match &operation.what {
                What::Write { outcome, .. } => outcome,
                What::Read { .. } => return false,
            };
            matches!(outcome, Outcome::Acknowledged(_))
        };
        operations.iter().filter(is_acknowledged).count()
    }

    /// Makes the maps, of which each write is a new version.
    pub async fn begin(&self, api: &Api<ConfigMap>) {
        for (value, key) in KEYS.into_iter().enumerate() {
            self.write(api, map(key, value as u64, None)).await;
        }
    }

    /// Writes a map; None when it is not certain that it was written.
    async fn write(&self, api: &Api<ConfigMap>, map: ConfigMap) -> Option<ConfigMap> {
        let key = map.metadata.name.clone().unwrap();
        let based_on = map.metadata.resource_version.as_deref();
        let based_on = based_on.map_or(0, |text| text.parse().unwrap());
        let (began, value) = (self.now(), value_of(&map));
        let params = PostParams::default();
        let write = async {
            match based_on {
                0 => api.create(&params, &map).await,
                _ => api.replace(&key, &params, &map).await,
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, write).await;
        let outcome = match &answer {
            Ok(Ok(written)) => Outcome::Acknowledged(revision_of(&written.metadata)),
            Ok(Err(kube::Error::Api(status))) if (400..500).contains(&status.code) => {
                Outcome::Refused
            }
            _ => Outcome::Unknown,
        };
        let what = What::Write {
            key,
            value,
            based_on,
            outcome,
        };
        self.note(began, what);
        answer.ok()?.ok()
    }

    async fn read(&self, api: &Api<ConfigMap>, key: &str) -> Option<ConfigMap> {
        let began = self.now();
        let map = tokio::time::timeout(TIMEOUT, api.get(key))
            .await
            .ok()?
            .ok()?;
        let found = [(key.to_owned(), (revision_of(&map.metadata), value_of(&map)))];
        let found = found.into();
        self.note(began, What::Read { found, list: None });
        Some(map)
    }

    /// A consistent list of all maps. Whether there was an answer.
    pub async fn list(&self, api: &Api<ConfigMap>) -> bool {
        let began = self.now();
        let params = ListParams::default().labels("durable");
        let Ok(Ok(list)) = tokio::time::timeout(TIMEOUT, api.list(&params)).await else {
            return false;
        };
        let version = list.metadata.resource_version.as_deref();
        let version = version.and_then(|text| text.parse().ok());
        let found = list.items.iter().map(|map| {
            let name = map.metadata.name.clone().unwrap();
            (name, (revision_of(&map.metadata), value_of(map)))
        });
        let found: BTreeMap<_, _> = found.collect();
        let list = Some(version.unwrap());
        self.note(began, What::Read { found, list });
        true
    }

    /// One client: it reads a map and writes it on that condition, and now and then lists all. Values are `number` and those
    /// `step` apart, so that no two clients write the same.
    pub async fn work(self, api: Api<ConfigMap>, number: u64, step: u64) {
        for round in 1.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let key = KEYS[((round + number) % KEYS.len() as u64) as usize];
            let done = async {
                let map = self.read(&api, key).await?;
                let value = KEYS.len() as u64 + round * step + number;
                let new = self::map(key, value, map.metadata.resource_version);
                self.write(&api, new).await?;
                Some(())
            };
            if done.await.is_none() {
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
            if round % 5 == 0 {
                self.list(&api).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn map(key: &str, value: u64, version: Option<String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(key.to_owned()),
            labels: Some([("durable".to_owned(), "yes".to_owned())].into()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        data: Some([("value".to_owned(), value.to_string())].into()),
        ..ConfigMap::default()
    }
}

fn revision_of(metadata: &ObjectMeta) -> Revision {
    metadata
        .resource_version
        .as_deref()
        .unwrap()
        .parse()
        .unwrap()
}

fn value_of(map: &ConfigMap) -> u64 {
    map.data.as_ref().unwrap()["value"].parse().unwrap()
}

/// What watchers heard, while they go on.
pub type Heard = Arc<Mutex<Watched>>;

pub fn heard(who: &str, after: Revision) -> Heard {
    let who = who.to_owned();
    Arc::new(Mutex::new(Watched {
        who,
        after,
        events: Vec::new(),
    }))
}

/// Watches as the plainest client does: again from the last version that it heard, whenever the stream ends. It cannot list
/// again: a refusal as too old ends the test.
pub async fn watch_raw(api: Api<ConfigMap>, heard: Heard) {
    let mut version = heard.lock().unwrap().after;
    loop {
        let params = WatchParams::default().labels("durable");
        let stream = match api.watch(&params, &version.to_string()).await {
            Ok(stream) => stream,
            Err(error) => {
                assert!(!is_gone(&error), "the watch lost its place: {error}");
                tokio::time::sleep(AFTER_AN_ERROR).await;
                continue;
            }
        };
        let mut stream = pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(WatchEvent::Added(map) | WatchEvent::Modified(map)) => {
                    version = revision_of(&map.metadata);
                    let name = map.metadata.name.clone().unwrap();
                    let event = (name, version, value_of(&map));
                    heard.lock().unwrap().events.push(event);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    version = bookmark.metadata.resource_version.parse().unwrap();
                }
                Ok(WatchEvent::Error(status)) => {
                    assert_ne!(status.code, 410, "the watch lost its place: {status:?}");
                }
                Ok(WatchEvent::Deleted(map)) => panic!("nobody deletes {map:?}"),
                Err(_) => break,
            }
        }
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Watches as kube-rs' controllers do. What it lists is heard, too; that it lists again is noted by `lists`.
pub async fn watch_runtime(api: Api<ConfigMap>, heard: Heard, lists: Arc<Mutex<usize>>) {
    let config = watcher::Config::default().labels("durable");
    let mut stream = pin!(watcher(api, config));
    loop {
        match stream.try_next().await {
            Ok(Some(watcher::Event::Init)) => *lists.lock().unwrap() += 1,
            Ok(Some(watcher::Event::Apply(map))) => {
                let name = map.metadata.name.clone().unwrap();
                let event = (name, revision_of(&map.metadata), value_of(&map));
                heard.lock().unwrap().events.push(event);
            }
            Ok(Some(watcher::Event::InitApply(map))) => {
                let mut heard = heard.lock().unwrap();
                heard.after = heard.after.max(revision_of(&map.metadata));
            }
            Ok(Some(watcher::Event::InitDone)) => {}
            Ok(Some(watcher::Event::Delete(map))) => panic!("nobody deletes {map:?}"),
            Ok(None) => return,
            Err(_) => tokio::time::sleep(AFTER_AN_ERROR).await,
        }
    }
}
