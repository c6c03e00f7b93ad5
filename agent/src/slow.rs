//! Calls that may never return: a file system whose server is gone, a resolver that hears nothing. Each keeps a thread for as
//! long as it lasts, so only some of a kind are made at once.

use std::time::Duration;

use tokio::sync::Semaphore;

/// So many of one kind at once.
pub(crate) const PLACES: usize = 4;

/// Does `work` on a thread of its own. `None` when it is not done in time, or got no place in time; what goes on behind that
/// keeps its place.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    places: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let done = async {
        let place = places.acquire().await.ok()?;
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        work.await.ok()
    };
    tokio::time::timeout(limit, done).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn what_hangs_keeps_its_place_and_nothing_else() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let long = Duration::from_secs(60);
        assert_eq!(within(long, &ONE, || 1).await, Some(1));
        let (end, ended) = channel::<()>();
        let hangs = move || ended.recv().is_ok();
        let short = Duration::from_millis(10);
        assert_eq!(within(short, &ONE, hangs).await, None);
        assert_eq!(within(short, &ONE, || 2).await, None);
        end.send(()).unwrap();
        assert_eq!(within(long, &ONE, || 3).await, Some(3));
    }
}
