//! Parts that run as long as the program. One that ends before all are told to ends the program, whose supervisor starts
//! it anew: half a control plane would answer and do nothing.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A part ended, and with it everything.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("{0} ended, which it never does by itself")]
    Ended(&'static str),
    #[error("a part panicked; its message is above")]
    Panicked,
}

/// How long parts that end when told to may take for it.
const ENDING: Duration = Duration::from_secs(8);

pub struct Parts {
    tasks: JoinSet<&'static str>,
    /// Those that have something to do when they are told to end.
    ending: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Parts {
    /// `stop` tells everything to end, parts and program.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            ending: JoinSet::new(),
            stop,
        }
    }

    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            part.await;
            name
        });
    }

    /// The same for a part that ends when everything is told to, and is waited for then.
    pub fn spawn_ending(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.ending.spawn(async move {
            part.await;
            name
        });
    }

    /// Returns when everything is told to end. A part that ended earlier tells it, and is the error.
    pub async fn watch(mut self) -> Result<(), PartError> {
        let ended = tokio::select! {
            // Cancel-safe: a join set loses nothing when polled in vain.
            () = self.stop.cancelled() => None,
            Some(ended) = self.tasks.join_next() => Some(ended),
            Some(ended) = self.ending.join_next() => Some(ended),
        };
        let ended = ended.filter(|_| !self.stop.is_cancelled());
        self.stop.cancel();
        let rest = async { while self.ending.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(ENDING, rest).await;
        match ended {
            None => Ok(()),
            Some(ended) => Err(ended.map_or(PartError::Panicked, PartError::Ended)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_or_panics_ends_all() {
        for (panics, expected) in [
            (true, "a part panicked; its message is above"),
            (false, "b ended, which it never does by itself"),
        ] {
            let stop = CancellationToken::new();
            let mut parts = Parts::new(stop.clone());
            parts.spawn("a", std::future::pending());
            parts.spawn("b", async move { assert!(!panics, "on purpose") });
            let error = parts.watch().await.unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(stop.is_cancelled());
        }
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_no_error() {
        let stop = CancellationToken::new();
        let mut parts = Parts::new(stop.clone());
        let told = stop.clone();
        let done = CancellationToken::new();
        let farewell = done.clone();
        parts.spawn("a", std::future::pending());
        parts.spawn_ending("b", async move {
            told.cancelled().await;
            tokio::task::yield_now().await;
            farewell.cancel();
        });
        stop.cancel();
        parts.watch().await.unwrap();
        assert!(done.is_cancelled(), "it is waited for");
    }
}
