//! The cache over an embedded store.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde_json::Value;

use super::*;
use crate::store::Expect;
use crate::store::embedded::Embedded;

fn index(key: &str, _: &Value) -> Vec<(&'static str, String)> {
    vec![(
        "metadata.name",
        key.rsplit('/').next().unwrap_or_default().to_owned(),
    )]
}

fn pod(name: &str, label: &str) -> Bytes {
    serde_json::json!({"metadata": {"name": name, "labels": {"app": label}}, "spec": {}})
        .to_string()
        .into()
}

async fn fixture() -> (tempfile::TempDir, Arc<Embedded>, Arc<Cache>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
    let cache = Cache::start(store.clone(), index).await.unwrap();
    (dir, store, cache)
}

const KEY: &str = "/registry/pods/default/a";

#[tokio::test]
async fn a_dropped_watch_is_forgotten_at_once() {
    let (_dir, _store, cache) = fixture().await;
    let count = || cache.read(State::watchers);
    let kept = cache.watch("/registry/pods/", None).unwrap();
    for n in 0..100 {
        drop(cache.watch(&format!("/registry/quiet/{n}/"), None).unwrap());
        drop(cache.watch("/registry/pods/", None).unwrap());
    }
    assert_eq!(count(), 1);
    drop(kept);
    assert_eq!(count(), 0);
}

#[tokio::test]
async fn a_writer_reads_its_own_write() {
    let (_dir, store, cache) = fixture().await;
    let written = store.put(KEY, pod("a", "x"), Expect::Absent).await.unwrap();
    let (object, revision) = cache.get(KEY, Freshness::Latest).await.unwrap();
    let object = object.unwrap();
    assert_eq!((object.revision, revision), (written, written));
    let json: Value = serde_json::from_slice(&object.json).unwrap();
    assert_eq!(json["metadata"]["resourceVersion"], written.0.to_string());
    assert_eq!(object.labels, [("app".to_owned(), "x".to_owned())]);
    assert_eq!(object.fields, [("metadata.name", "a".to_owned())]);
}

#[tokio::test]
async fn a_watch_has_the_changes_of_its_prefix_only_old_and_new() {
    let (_dir, store, cache) = fixture().await;
    let start = cache.revision();
    let first = store.put(KEY, pod("a", "x"), Expect::Absent).await.unwrap();
    store
        .put("/registry/pods/other/a", pod("a", "x"), Expect::Absent)
        .await
        .unwrap();
    cache
        .list("/registry/pods/", Freshness::Latest)
        .await
        .unwrap();

    let mut namespace = cache.watch("/registry/pods/default/", Some(start)).unwrap();
    let mut one = cache.watch(KEY, None).unwrap();
    let gone = store.delete(KEY, first).await.unwrap();

    assert!(matches!(
        namespace.next().await,
        Some(Change::Put { previous: None, .. })
    ));
    for watch in [&mut namespace, &mut one] {
        match watch.next().await {
            Some(Change::Delete { object, previous }) => {
                assert_eq!((object.revision, previous.revision), (gone, first));
                let json: Value = serde_json::from_slice(&object.json).unwrap();
                assert_eq!(json["metadata"]["resourceVersion"], gone.0.to_string());
            }
            other => panic!("expected a deletion, got {other:?}"),
        }
        assert!(watch.next().now_or_never().is_none());
    }
    cache.wait(gone).await.unwrap();
    assert_eq!(one.bookmark(), Some(gone));
}

#[tokio::test]
async fn a_revision_that_does_not_come_is_refused_after_a_while() {
    let (_dir, _store, cache) = fixture().await;
    let answer = cache
        .list("/registry/", Freshness::NotOlderThan(Revision(99)))
        .await;
    assert!(matches!(
        answer,
        Err(ReadError::Behind {
            asked: Revision(99),
            ..
        })
    ));
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_others_go_on() {
    let (_dir, store, cache) = fixture().await;
    let mut slow = cache.watch("/registry/pods/", None).unwrap();
    let mut modified = store.put(KEY, pod("a", "x"), Expect::Absent).await.unwrap();
    for _ in 0..1_100 {
        modified = store
            .put(KEY, pod("a", "y"), Expect::Modified(modified))
            .await
            .unwrap();
    }
    cache.wait(modified).await.unwrap();
    let mut seen = 0;
    while slow.next().await.is_some() {
        seen += 1;
    }
    assert_eq!(seen, 1_024);
    // It resumes from where it was.
    let mut again = cache
        .watch("/registry/pods/", Some(Revision(1 + seen)))
        .unwrap();
    assert_eq!(again.next().await.unwrap().revision(), Revision(2 + seen));
}

#[tokio::test]
async fn an_idle_watch_has_bookmarks() {
    let (_dir, store, cache) = fixture().await;
    let mut watch = cache
        .watch("/registry/pods/", None)
        .unwrap()
        .with_bookmarks(Duration::from_millis(10));
    let other = store
        .put("/registry/nodes/n", pod("n", "x"), Expect::Absent)
        .await
        .unwrap();
    cache.wait(other).await.unwrap();
    assert!(matches!(watch.next().await, Some(Change::Bookmark(at)) if at == other));
}

#[tokio::test]
async fn a_cache_that_starts_anew_tells_watchers_what_came_before() {
    let (_dir, store, before) = fixture().await;
    let first = store.put(KEY, pod("a", "x"), Expect::Absent).await.unwrap();
    let expect = Expect::Modified(first);
    let second = store.put(KEY, pod("a", "y"), expect).await.unwrap();
    let private = format!("{PRIVATE}reserved");
    let hidden = store.put(&private, "x".into(), Expect::Absent);
    hidden.await.unwrap();
    let third = store.delete(KEY, second).await.unwrap();
    drop(before);

    let revisions = |watch: Watch, count| async move {
        let changes: Vec<Change> = watch.take(count).collect().await;
        let revisions = changes.iter().map(Change::revision);
        revisions.collect::<Vec<_>>()
    };
    let again = Cache::start(store.clone(), index).await.unwrap();
    let watch = again.watch("/registry/", Some(first)).unwrap();
    assert_eq!(revisions(watch, 2).await, [second, third]);
    assert_eq!(again.revision(), third);
    assert!(again.read(|state| state.list("/registry/")).is_empty());

    // What the store has forgotten is gone for the cache, too; the rest is not.
    store.compact(second).await.unwrap();
    let last = store.put(KEY, pod("a", "z"), Expect::Absent).await.unwrap();
    let late = Cache::start(store.clone(), index).await.unwrap();
    assert!(late.watch("/registry/", Some(first)).is_err());
    assert_eq!(late.revision(), last);
    assert_eq!(late.read(|state| state.list("/registry/")).len(), 1);
}

#[tokio::test]
async fn a_watcher_does_not_hold_more_than_some_megabytes() {
    const LARGE: usize = 1 << 20;
    let (_dir, store, cache) = fixture().await;
    let mut slow = cache.watch("/registry/pods/", None).unwrap();
    let mut quick = cache.watch("/registry/pods/", None).unwrap();
    let object = pod("a", &"x".repeat(LARGE));
    let mut expect = Expect::Absent;
    for _ in 0..20 {
        let written = store.put(KEY, object.clone(), expect).await.unwrap();
        assert_eq!(quick.next().await.map(|it| it.revision()), Some(written));
        expect = Expect::Modified(written);
    }
    let mut held = 0;
    while slow.next().await.is_some() {
        held += 1;
    }
    assert_eq!(held, 7, "as many as fit, and then it is ended");
    // The ring holds no more either.
    assert!(cache.watch("/registry/pods/", Some(Revision(8))).is_err());
}
