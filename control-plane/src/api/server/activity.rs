//! Whether anything happens on a connection: a client that connects and asks for nothing must not keep its place.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::watch;

/// How many requests run on a connection. A request runs until its answer's body is sent or dropped.
#[derive(Clone)]
pub(super) struct Activity(watch::Sender<usize>);

/// A running request.
pub(super) struct Running(watch::Sender<usize>);

impl Activity {
    pub(super) fn new() -> Self {
        Activity(watch::Sender::new(0))
    }

    pub(super) fn begin(&self) -> Running {
        self.0.send_modify(|running| *running += 1);
        Running(self.0.clone())
    }

    /// Returns when no request came for `first` since the start, or none ran for `idle` after that.
    pub(super) async fn idle(&self, first: Duration, idle: Duration) {
        let mut running = self.0.subscribe();
        let mut patience = first;
        loop {
            // The sender lives in `self`, so waiting for a change cannot fail.
            if *running.borrow_and_update() > 0 {
                let _ = running.changed().await;
            } else if tokio::time::timeout(patience, running.changed())
                .await
                .is_err()
            {
                return;
            }
            patience = idle;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// An answer's body, which keeps its request running.
pub(super) struct Answering<B> {
    pub(super) body: B,
    pub(super) _running: Running,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answering<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
