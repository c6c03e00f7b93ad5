//! One watch of etcd as a stream of the store's changes.

use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use super::{entry, number, range_end, revision, unavailable};
use crate::store::{Event, Revision, StoreError, Watched};

/// Whether a server of this version answers a request for progress only after the events that precede it. Before 3.4.25 and
/// 3.5.8 the answer could overtake them; there, a watch moves on with its own prefix's events only, which is enough while
/// nobody else writes to the same etcd.
pub(super) fn progress_is_sound(version: &str) -> bool {
    let numbers: Vec<u64> = version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect();
    match numbers[..] {
        [3, 4, patch] => patch >= 25,
        [3, 5, patch] => patch >= 8,
        [major, minor, ..] => (major, minor) > (3, 5),
        _ => false,
    }
}

/// Between two requests for the same proof: etcd drops those that come while the watch catches up.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// `ask` asks for a proof of progress.
struct Live<A, R> {
    ask: A,
    responses: R,
    seen: Revision,
    /// The newest revision that readers wait for; None if the server cannot prove progress.
    wanted: Option<watch::Receiver<Revision>>,
    /// Up to where a proof has been asked for.
    asked: Revision,
}

/// Watches `prefix` for what is later than `after`.
pub(super) async fn start(
    mut client: WatchClient,
    prefix: &str,
    after: Revision,
    wanted: Option<watch::Receiver<Revision>>,
) -> Result<BoxStream<'static, Result<Watched, StoreError>>, StoreError> {
    let options = WatchOptions::new()
        .with_range(range_end(prefix))
        .with_start_revision(number(after).saturating_add(1))
        .with_prev_key()
        .with_progress_notify();
    let watch = client
        .watch(prefix, Some(options))
        .await
        .map_err(unavailable)?;
    let (mut requests, responses) = watch.split();
    let live = Live {
        ask: async move || requests.request_progress().await,
        responses,
        seen: after,
        wanted,
        asked: after,
    };
    let batches = stream::try_unfold(live, async |mut live| {
        let batch = live.next().await?;
        Ok(batch.map(|batch| (stream::iter(batch.into_iter().map(Ok)), live)))
    });
    Ok(futures::TryStreamExt::try_flatten(batches).boxed())
}

impl<A, R> Live<A, R>
where
    A: AsyncFnMut() -> Result<(), etcd_client::Error>,
    R: Stream<Item = Result<WatchResponse, etcd_client::Error>> + Unpin,
{
    /// The next changes; None when etcd has closed the watch.
    async fn next(&mut self) -> Result<Option<VecDeque<Watched>>, StoreError> {
        loop {
            let floor = self.seen.max(self.asked);
            // All arms keep what they wait for when another wins: the stream its messages, the channel its value.
            tokio::select! {
                biased;
                response = self.responses.next() => {
                    let Some(response) = response.transpose().map_err(unavailable)? else {
                        return Ok(None);
                    };
                    let batch = changes(&response, self.seen)?;
                    if let Some(last) = batch.back() {
                        self.seen = reached(last);
                        return Ok(Some(batch));
                    }
                }
                target = later(self.wanted.as_mut(), floor) => {
                    self.asked = target;
                    (self.ask)().await.map_err(unavailable)?;
                }
                () = tokio::time::sleep(ASK_AGAIN), if self.asked > self.seen => {
                    (self.ask)().await.map_err(unavailable)?;
                }
            }
        }
    }
}

/// Waits until readers want a revision later than `floor`.
async fn later(wanted: Option<&mut watch::Receiver<Revision>>, floor: Revision) -> Revision {
    if let Some(wanted) = wanted
        && let Ok(target) = wanted.wait_for(|wanted| *wanted > floor).await
    {
        return *target;
    }
    std::future::pending().await
}

fn reached(watched: &Watched) -> Revision {
    match watched {
        Watched::Event(event) => event.revision(),
        Watched::Progress(revision) => *revision,
    }
}

fn changes(response: &WatchResponse, seen: Revision) -> Result<VecDeque<Watched>, StoreError> {
    if response.compact_revision() != 0 {
        return Err(StoreError::Compacted {
            asked: seen,
            oldest: super::from_number(response.compact_revision()),
        });
    }
    if response.canceled() {
        return Err(StoreError::Unavailable(format!(
            "etcd ended the watch: {}",
            response.cancel_reason()
        )));
    }
    let at = revision(response.header());
    if response.events().is_empty() {
        // The answer to the creation proves nothing: older events may be on their way.
        let proof = !response.created() && at > seen;
        return Ok(proof.then_some(Watched::Progress(at)).into_iter().collect());
    }
    let gone = StoreError::Compacted {
        asked: seen,
        oldest: at,
    };
    let mut batch = VecDeque::with_capacity(response.events().len());
    for event in response.events() {
        let previous = event.prev_kv().cloned().map(entry).transpose()?;
        let Some(kv) = event.kv() else { continue };
        let created = kv.create_revision() == kv.mod_revision();
        let change = match (event.event_type(), previous) {
            (EventType::Put, previous) if created || previous.is_some() => Event::Put {
                entry: entry(kv.clone())?,
                previous,
            },
            (EventType::Delete, Some(previous)) => Event::Delete {
                previous,
                revision: super::from_number(kv.mod_revision()),
            },
            // Compaction took what was there before.
            _ => return Err(gone),
        };
        batch.push_back(Watched::Event(change));
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_proof_that_does_not_come_is_asked_for_again() {
        let (wish, wanted) = watch::channel(Revision(1));
        let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
        let mut live = Live {
            ask: async move || {
                asked.send(()).expect("the test listens");
                Ok(())
            },
            responses: stream::pending(),
            seen: Revision(1),
            wanted: Some(wanted),
            asked: Revision(1),
        };
        let quiet = tokio::time::timeout(2 * ASK_AGAIN, live.next()).await;
        assert!(quiet.is_err() && asks.try_recv().is_err(), "nobody waits");
        wish.send_replace(Revision(2));
        let thrice = async {
            for _ in 0..3 {
                asks.recv().await;
            }
        };
        tokio::select! {
            () = thrice => {}
            _ = live.next() => unreachable!("etcd is silent"),
        }
    }

    #[test]
    fn old_servers_are_not_asked_for_progress() {
        for (version, sound) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.6.0", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(progress_is_sound(version), sound, "{version}");
        }
    }
}
