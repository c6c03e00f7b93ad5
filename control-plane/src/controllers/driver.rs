//! Runs a controller's reconcile for keys: never twice at once for one key, again after a failure with a back-off that
//! fits the error, and from time to time without any cause.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::{debug, warn};

/// What a reconcile can fail with. What is done about it depends on [`Error::retry`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Object(String),
}

/// When to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// The cache was behind: the fresh state is on its way.
    AtOnce,
    /// The server may be away or starting; each failure doubles the wait.
    BackOff { first: Duration },
    /// What the reconcile was about is gone; a new event will come if that changes.
    Never,
}

impl Error {
    fn retry(&self) -> Retry {
        let Self::Api(kube::Error::Api(status)) = self else {
            return Retry::BackOff {
                first: Duration::from_millis(20),
            };
        };
        match status.code {
            409 if status.reason == "Conflict" => Retry::AtOnce,
            404 => Retry::Never,
            403 if is_namespace_going(status) => Retry::Never,
            // A quota that is full or a template that is wrong: asking often helps nobody.
            403 | 422 => Retry::BackOff {
                first: Duration::from_secs(1),
            },
            _ => Retry::BackOff {
                first: Duration::from_millis(20),
            },
        }
    }
}

pub(crate) fn is_namespace_going(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A conflict clears as soon as the watch has delivered what we lost against; if that takes longer, so do the pauses.
const CONFLICT_PAUSE: Duration = Duration::from_millis(2);
const MAX_CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Objects may ask for times that no timer holds. A look that comes too early costs little and asks again.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// Wakes a controller up for a key.
pub(crate) struct Queue<K> {
    sender: mpsc::UnboundedSender<(K, Duration)>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
        }
    }
}

pub(crate) type Wakeups<K> = mpsc::UnboundedReceiver<(K, Duration)>;

pub(crate) fn queue<K>() -> (Queue<K>, Wakeups<K>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Queue { sender }, receiver)
}

impl<K> Queue<K> {
    pub(crate) fn add(&self, key: K) {
        self.add_after(key, Duration::ZERO);
    }

    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        // Fails only when the controller has ended, and then nobody needs the wake-up.
        let _ = self.sender.send((key, delay));
    }
}

/// Which keys wait and which run. A key that is added while it runs, runs once more afterwards.
struct Backlog<K> {
    waiting: VecDeque<K>,
    queued: HashSet<K>,
    running: HashSet<K>,
}

impl<K: Clone + Eq + Hash> Backlog<K> {
    fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
        }
    }

    fn add(&mut self, key: K) {
        if self.queued.insert(key.clone()) && !self.running.contains(&key) {
            self.waiting.push_back(key);
        }
    }

    fn next(&mut self) -> Option<K> {
        let key = self.waiting.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &K) {
        self.running.remove(key);
        if self.queued.contains(key) {
            self.waiting.push_back(key.clone());
        }
    }
}

/// Calls `reconcile` for every key that `wakeups` names, at most `workers` at a time, until `shutdown`.
///
/// A reconcile that returns a duration is called again after it.
pub(crate) async fn drive<K, F, Fut>(
    name: &'static str,
    mut wakeups: Wakeups<K>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    K: Clone + Eq + Hash + std::fmt::Display,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Option<Duration>>>,
{
    let mut backlog: Backlog<K> = Backlog::new();
    let mut delays: DelayQueue<K> = DelayQueue::new();
    let mut delayed: HashMap<K, delay_queue::Key> = HashMap::new();
    let mut failures: HashMap<K, u32> = HashMap::new();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < workers
            && let Some(key) = backlog.next()
        {
            let work = reconcile(key.clone());
            running.push(async move { (key, work.await) });
        }
        // All arms are cancel-safe: a receiver, a delay queue and a set of futures lose nothing when polled in vain.
        let wakeup = tokio::select! {
            () = shutdown.cancelled() => return,
            wakeup = wakeups.recv() => match wakeup {
                Some(wakeup) => Some(wakeup),
                None => return,
            },
            Some(expired) = delays.next(), if !delays.is_empty() => {
                let key = expired.into_inner();
                delayed.remove(&key);
                Some((key, Duration::ZERO))
            }
            Some((key, outcome)) = running.next(), if !running.is_empty() => {
                backlog.done(&key);
                let delay = match outcome {
                    Ok(next) => {
                        failures.remove(&key);
                        next
                    }
                    Err(error) => delay_after(name, &key, &error, &mut failures),
                };
                delay.map(|delay| (key, delay))
            }
        };
        match wakeup {
            None => {}
            Some((key, Duration::ZERO)) => backlog.add(key),
            Some((key, delay)) => {
                let delay = delay.min(MAX_DELAY);
                // The earliest of several asked-for times wins.
                match delayed.get(&key) {
                    Some(known)
                        if delays.deadline(known) <= tokio::time::Instant::now() + delay => {}
                    Some(known) => delays.reset(known, delay),
                    None => {
                        let handle = delays.insert(key.clone(), delay);
                        delayed.insert(key, handle);
                    }
                }
            }
        }
    }
}

fn delay_after<K: Clone + Eq + Hash + std::fmt::Display>(
    controller: &str,
    key: &K,
    error: &Error,
    failures: &mut HashMap<K, u32>,
) -> Option<Duration> {
    match error.retry() {
        Retry::AtOnce => {
            debug!(controller, %key, "our copy was old, trying again");
            Some(doubled(CONFLICT_PAUSE, key, failures).min(MAX_CONFLICT_PAUSE))
        }
        Retry::Never => {
            failures.remove(key);
            debug!(controller, %key, %error, "gone meanwhile");
            None
        }
        Retry::BackOff { first } => {
            let delay = doubled(first, key, failures).min(MAX_BACKOFF);
            warn!(controller, %key, %error, retry_in = ?delay, "reconcile failed");
            Some(delay)
        }
    }
}

/// `first`, doubled for each earlier failure of the key.
fn doubled<K: Clone + Eq + Hash>(
    first: Duration,
    key: &K,
    failures: &mut HashMap<K, u32>,
) -> Duration {
    let count = failures.entry(key.clone()).or_default();
    let delay = first.saturating_mul(1 << (*count).min(12));
    *count += 1;
    delay
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kube::core::Status;
    use proptest::prelude::*;

    use super::*;

    fn api_error(code: u16, reason: &str) -> Error {
        Error::Api(kube::Error::Api(Box::new(
            Status::failure("no", reason).with_code(code),
        )))
    }

    #[test]
    fn each_error_has_its_own_retry() {
        assert_eq!(api_error(409, "Conflict").retry(), Retry::AtOnce);
        assert_eq!(api_error(404, "NotFound").retry(), Retry::Never);
        assert_eq!(
            api_error(403, "Forbidden").retry(),
            Retry::BackOff {
                first: Duration::from_secs(1)
            }
        );
        assert_eq!(
            api_error(500, "InternalError").retry(),
            Retry::BackOff {
                first: Duration::from_millis(20)
            }
        );
    }

    #[tokio::test]
    async fn a_failing_key_backs_off_and_others_go_on() {
        let (sender, receiver) = queue::<String>();
        let bad = Arc::new(AtomicUsize::new(0));
        let good = Arc::new(AtomicUsize::new(0));
        sender.add("bad".into());
        sender.add("good".into());
        let shutdown = CancellationToken::new();
        let (bad_calls, good_calls) = (bad.clone(), good.clone());
        let started = tokio::time::Instant::now();
        let loop_ = tokio::spawn(drive("test", receiver, 1, shutdown.clone(), move |key| {
            let (bad, good) = (bad_calls.clone(), good_calls.clone());
            async move {
                if key == "bad" {
                    bad.fetch_add(1, Ordering::SeqCst);
                    Err(api_error(500, "InternalError"))
                } else {
                    good.fetch_add(1, Ordering::SeqCst);
                    Ok(None)
                }
            }
        }));
        while bad.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(good.load(Ordering::SeqCst), 1);
        // The fourth comes after 20, 40 and 80 ms.
        assert!(started.elapsed() >= Duration::from_millis(140));
        shutdown.cancel();
        loop_.await.unwrap();
    }

    #[tokio::test]
    async fn a_key_asked_for_later_runs_later_and_the_earliest_time_wins() {
        let (sender, receiver) = queue::<String>();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        sender.add_after("a".into(), Duration::from_secs(60));
        sender.add_after("a".into(), Duration::from_millis(10));
        sender.add_after("a".into(), Duration::from_secs(30));
        let shutdown = CancellationToken::new();
        let loop_ = tokio::spawn(drive("test", receiver, 1, shutdown.clone(), move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(None) }
        }));
        while calls.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        shutdown.cancel();
        loop_.await.unwrap();
    }

    #[tokio::test]
    async fn a_time_beyond_all_timers_breaks_nothing() {
        let (sender, receiver) = queue::<String>();
        sender.add_after("a".into(), Duration::MAX);
        sender.add_after("b".into(), Duration::from_millis(1));
        let (ran, mut runs) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let loop_ = tokio::spawn(drive("test", receiver, 1, shutdown.clone(), move |key| {
            ran.send(key).unwrap();
            async { Ok(Some(Duration::from_secs(68_719_477))) }
        }));
        assert_eq!(runs.recv().await.as_deref(), Some("b"));
        sender.add("c".into());
        assert_eq!(runs.recv().await.as_deref(), Some("c"));
        shutdown.cancel();
        loop_.await.unwrap();
    }

    proptest! {
        #[test]
        fn a_key_never_runs_twice_at_once_and_no_wakeup_is_lost(steps in prop::collection::vec((0u8..3, 0u8..4), 0..80)) {
            let mut backlog = Backlog::new();
            let mut running: Vec<u8> = Vec::new();
            let mut owed: HashSet<u8> = HashSet::new();
            for (step, key) in steps {
                match step {
                    0 => {
                        backlog.add(key);
                        owed.insert(key);
                    }
                    1 => {
                        if let Some(key) = backlog.next() {
                            prop_assert!(!running.contains(&key));
                            owed.remove(&key);
                            running.push(key);
                        }
                    }
                    _ => {
                        if let Some(key) = running.pop() {
                            backlog.done(&key);
                        }
                    }
                }
            }
            while let Some(key) = running.pop() {
                backlog.done(&key);
            }
            while let Some(key) = backlog.next() {
                prop_assert!(owed.remove(&key));
                backlog.done(&key);
            }
            prop_assert!(owed.is_empty());
        }
    }
}
