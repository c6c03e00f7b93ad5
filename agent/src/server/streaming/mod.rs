//! Streams between a client and a container: what `kubectl exec`, `attach` and `port-forward` upgrade their request to.
//!
//! A connection carries several streams at once, in one of two framings: [`spdy`], which clients up to 1.30 speak, or
//! [`websocket`]. Both give the same two things, an [`Incoming`] for each stream that the client writes and a [`Channel`]
//! for each that it reads, so what runs over them does not know which it is.

mod attach;
pub(super) mod copy;
pub(super) mod exec;
pub(super) mod negotiate;
mod port_forward;
pub(super) mod remote;
pub mod routes;
pub(super) mod spdy;
mod status;
pub(super) mod websocket;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Pieces that wait on their way, in either direction; each is at most what one read or one frame holds.
const QUEUE: usize = 16;
/// Bytes of one connection that its clients have sent and nobody has taken yet: at least two of the longest pieces.
const UNREAD: usize = 8 << 20;
/// How long the client may take to read the last words and to close the connection.
const LINGER: Duration = Duration::from_secs(10);

/// What the client writes on one stream. It ends when the client ends it, or is gone.
pub(super) type Incoming = mpsc::Receiver<Bytes>;

/// The room for what a client has sent on one connection, and nobody has taken yet. However many streams and pieces there
/// are, together they are no larger.
struct Unread(Arc<Semaphore>);

impl Unread {
    fn new() -> Unread {
        Unread(Arc::new(Semaphore::new(UNREAD)))
    }

    /// Waits until there is room; the piece has it for as long as there is anything of it.
    async fn hold(&self, data: Bytes) -> Bytes {
        let length = u32::try_from(data.len().min(UNREAD)).unwrap_or(u32::MAX);
        match self.0.clone().acquire_many_owned(length).await {
            Ok(room) => Bytes::from_owner(Held { data, _room: room }),
            // It is never closed.
            Err(_) => data,
        }
    }
}

struct Held {
    data: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// What is to be sent on the connection.
#[derive(Debug, PartialEq, Eq)]
enum Outgoing {
    Accept(u32),
    Data(u32, Bytes),
    End(u32),
    Refuse(u32),
    Echo(u32),
    /// Nothing more comes: say so and close.
    Close,
}

/// The client is no longer there.
#[derive(Debug, thiserror::Error)]
#[error("the client has closed the connection")]
pub(super) struct Gone;

/// A stream that the client reads.
#[derive(Clone)]
pub(super) struct Channel {
    id: u32,
    queue: mpsc::Sender<Outgoing>,
}

impl Channel {
    pub(super) async fn send(&self, data: Bytes) -> Result<(), Gone> {
        let sent = self.queue.send(Outgoing::Data(self.id, data)).await;
        sent.map_err(|_| Gone)
    }

    /// Tells the client that nothing more comes on this stream.
    pub(super) async fn end(self) {
        // Without a client there is nobody to tell.
        let _ = self.queue.send(Outgoing::End(self.id)).await;
    }
}

/// A connection: a task that reads and one that writes. Both end when it is dropped.
pub(super) struct Connection {
    queue: mpsc::Sender<Outgoing>,
    /// The client is gone.
    pub(super) gone: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Connection {
    /// Starts both tasks; each tells `gone` when it ends for want of a client.
    fn start<R, W>(
        read: impl FnOnce(mpsc::Sender<Outgoing>) -> R,
        write: impl FnOnce(mpsc::Receiver<Outgoing>) -> W,
    ) -> Connection
    where
        R: Future<Output = ()> + Send + 'static,
        W: Future<Output = bool> + Send + 'static,
    {
        let (queue, queued) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let (reading, writing) = (read(queue.clone()), write(queued));
        let (after_reading, after_writing) = (gone.clone(), gone.clone());
        let reader = tokio::spawn(async move {
            reading.await;
            after_reading.cancel();
        });
        let writer = tokio::spawn(async move {
            if !writing.await {
                after_writing.cancel();
            }
        });
        Connection {
            queue,
            gone,
            tasks: [reader, writer],
        }
    }

    fn channel(&self, id: u32) -> Channel {
        let queue = self.queue.clone();
        Channel { id, queue }
    }

    /// Sends what is queued, and leaves the client the time to read it.
    pub(super) async fn close(self) {
        if self.queue.send(Outgoing::Close).await.is_ok() {
            let _ = tokio::time::timeout(LINGER, self.gone.cancelled()).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gone.cancel();
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_has_its_room_and_no_more() {
        let unread = Unread::new();
        let large = Bytes::from(vec![7; UNREAD - 1]);
        let held = unread.hold(large.clone()).await;
        assert_eq!(held, large);
        let rest = unread.hold(Bytes::from_static(b"x")).await;
        assert!(
            unread
                .hold(Bytes::from_static(b"y"))
                .now_or_never()
                .is_none()
        );
        let part = held.slice(..1);
        drop(held);
        assert!(unread.hold(large.clone()).now_or_never().is_none());
        drop((part, rest));
        assert!(unread.hold(large).now_or_never().is_some());
    }
}
