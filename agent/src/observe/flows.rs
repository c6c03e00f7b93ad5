//! Flows on their way from the kernel's ring buffer to whoever watches.
//!
//! While somebody watches, the kernel is told to record samples; otherwise it records refusals only. A watcher has a
//! bounded queue. What it is too slow for is lost, counted, and told to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use agent_ebpf::abi::{FlowEvent, is_sampled};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::warn;

use super::clients::Clients;
use super::flow::{Clock, dialled, ended, flow, is_drawn, is_refusal, reason, wanted};
use super::names::Names;
use super::refusals::Refusals;
use crate::chain::chain;
use crate::cluster::Cluster;
use crate::dataplane::{Events, MapError, Maps, Outside, monotonic_ns};
use crate::introspection as api;
use crate::proxy::ProxyHandle;

/// Flows that wait for a slow watcher.
const QUEUE: usize = 4096;
/// Events that are taken from the ring between two chances for other tasks to run.
const BATCH: usize = 256;

/// How the kernel is told what to record, and what it says it lost.
pub trait Recorder: Send + Sync {
    /// One in so many sockets from now on; 0 for none.
    fn record(&self, every: u32) -> Result<(), MapError>;
    /// Records that found the ring buffer full, ever.
    fn lost(&self) -> Result<u64, MapError>;
}

impl Recorder for Mutex<Maps> {
    fn record(&self, every: u32) -> Result<(), MapError> {
        let mut maps = self.lock().unwrap_or_else(PoisonError::into_inner);
        maps.set_sampling(every)
    }
    fn lost(&self) -> Result<u64, MapError> {
        let maps = self.lock().unwrap_or_else(PoisonError::into_inner);
        maps.events_lost()
    }
}

/// Where flows are published and watched. Clones share it.
#[derive(Clone)]
pub struct Flows(Arc<Hub>);

struct Hub {
    recorder: Box<dyn Recorder>,
    watchers: Mutex<Watchers>,
    /// Flows that watchers were too slow for, of all watchers that ever were.
    lost: AtomicU64,
}

#[derive(Default)]
struct Watchers {
    next: u64,
    all: Vec<Watcher>,
    /// One in so many sockets, as the kernel was told last.
    drawn: u32,
}

struct Watcher {
    number: u64,
    request: api::WatchFlowsRequest,
    queue: mpsc::Sender<api::Flow>,
    lost: Arc<AtomicU64>,
}

impl Watcher {
    fn every(&self) -> u32 {
        self.request.sample_every.max(1)
    }
}

/// One watcher's end. Dropping it ends the watch.
pub struct Watch {
    flows: Flows,
    number: u64,
    queue: mpsc::Receiver<api::Flow>,
    lost: Arc<AtomicU64>,
    /// What the kernel had lost when the watch began.
    ring_before: u64,
}

impl Flows {
    /// Whatever an earlier process asked the kernel to record, nobody watches any more.
    pub fn new(recorder: Box<dyn Recorder>) -> Result<Self, MapError> {
        recorder.record(0)?;
        Ok(Self(Arc::new(Hub {
            recorder,
            watchers: Mutex::default(),
            lost: AtomicU64::new(0),
        })))
    }

    /// Begins to watch.
    pub fn watch(&self, request: api::WatchFlowsRequest) -> Result<Watch, MapError> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let ring_before = self.0.recorder.lost()?;
        let mut watchers = self.watchers();
        let number = watchers.next;
        watchers.next += 1;
        watchers.all.push(Watcher {
            number,
            request,
            queue: sender,
            lost: lost.clone(),
        });
        // If telling the kernel fails, dropping this takes the watcher away again.
        let watch = Watch {
            flows: self.clone(),
            number,
            queue,
            lost,
            ring_before,
        };
        let told = self.tell(&mut watchers);
        drop(watchers);
        told.map(|()| watch)
    }

    /// How many watch.
    pub fn watchers_now(&self) -> usize {
        self.watchers().all.len()
    }

    /// Flows that watchers were too slow for.
    pub fn lost_by_watchers(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Records that found the ring buffer full.
    pub fn lost_in_ring(&self) -> Result<u64, MapError> {
        self.0.recorder.lost()
    }

    /// Gives a flow to those who asked for it.
    pub(crate) fn publish(&self, flow: &api::Flow, refused: bool) {
        let watchers = self.watchers();
        for watcher in &watchers.all {
            let drawn = refused || is_drawn(flow.cookie, watcher.every(), watchers.drawn);
            if drawn
                && wanted(&watcher.request, flow)
                && let Err(mpsc::error::TrySendError::Full(_)) =
                    watcher.queue.try_send(flow.clone())
            {
                watcher.lost.fetch_add(1, Ordering::Relaxed);
                self.0.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        !self.watchers().all.is_empty()
    }

    fn unwatch(&self, number: u64) {
        let mut watchers = self.watchers();
        watchers.all.retain(|watcher| watcher.number != number);
        if let Err(error) = self.tell(&mut watchers) {
            warn!(error = chain(&error), "the kernel still records flows");
        }
    }

    /// Tells the kernel to record as many sockets as the most curious watcher wants.
    fn tell(&self, watchers: &mut Watchers) -> Result<(), MapError> {
        let every = watchers.all.iter().map(Watcher::every).min().unwrap_or(0);
        if every != watchers.drawn {
            self.0.recorder.record(every)?;
            watchers.drawn = every;
        }
        Ok(())
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.0
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// The next flow; `None` when the agent ends. Cancel-safe: a flow that is not returned stays in the queue.
    pub async fn next(&mut self) -> Option<api::Flow> {
        self.queue.recv().await
    }

    /// What has been lost since the watch began.
    pub fn lost(&self) -> api::Lost {
        let ring = self.flows.lost_in_ring().unwrap_or(self.ring_before);
        api::Lost {
            ring: ring.saturating_sub(self.ring_before),
            watcher: self.lost.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.flows.unwatch(self.number);
    }
}

/// Gives events the cluster's names, and to those who watch. Clones share the watchers.
#[derive(Clone)]
pub struct Publisher {
    pub flows: Flows,
    pub clients: Clients,
    pub cluster: Cluster,
    pub proxy: ProxyHandle,
}

impl Publisher {
    /// To those who watch.
    fn publish(&self, events: &[FlowEvent]) {
        let clock = Clock {
            monotonic_ns: monotonic_ns(),
            wall: Timestamp::now(),
        };
        for event in events {
            let client = self.clients.of(event);
            // In the order in which the others take them.
            let view = self.cluster.view();
            let inner = self.proxy.read();
            let names = Names {
                view: &view,
                state: &inner.state,
            };
            let flow = flow(event, &client, names, clock);
            self.flows.publish(&flow, is_refusal(event.kind));
        }
    }

    /// Tells of connections that are over, whose clients have no socket here: of those that the kernel would have told of.
    pub fn over(&self, over: &[Outside]) {
        let drawn = self.flows.watchers().drawn;
        let events = over.iter().map(ended);
        let events: Vec<FlowEvent> = events
            .filter(|event| is_sampled(event.cookie.0 as u32, drawn))
            .collect();
        self.publish(&events);
    }
}

/// Reads what the kernel records, as long as the agent runs: for the log, and for whoever watches.
pub async fn run(mut events: Events, publisher: Publisher) -> Result<(), MapError> {
    let mut refusals = Refusals::default();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        batch.clear();
        events.next(&mut batch, BATCH).await?;
        for event in batch.iter().filter(|event| is_refusal(event.kind)) {
            log(&mut refusals, event, &publisher);
        }
        if publisher.flows.is_watched() {
            publisher.publish(&batch);
        }
        tokio::task::yield_now().await;
    }
}

fn log(refusals: &mut Refusals, event: &FlowEvent, publisher: &Publisher) {
    let dialled = dialled(event);
    let service = publisher
        .proxy
        .read()
        .state
        .dialled(&dialled)
        .and_then(|live| live.owner.clone());
    let reason = reason(event);
    let Some(count) = refusals.note(service.clone(), reason, Instant::now()) else {
        return;
    };
    let client = publisher.clients.of(event);
    let name = service.map_or_else(|| "-".to_owned(), |service| service.to_string());
    let address = super::names::socket_address(dialled.address, dialled.port);
    warn!(
        service = name,
        address,
        %client,
        reason,
        refused = count,
        "connections to a service are refused"
    );
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
