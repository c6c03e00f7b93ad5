//! What is the embedded store's own: its file. That it answers as a store should is the shared suite's matter.

use bytes::Bytes;
use futures::StreamExt;

use super::*;
use crate::store::Expect;

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn a_store_remembers_over_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    {
        let store = Embedded::open(&path).unwrap();
        assert_eq!(store.revision().await.unwrap(), Revision(1));
        let a = store
            .put("/registry/a", value("1"), Expect::Absent)
            .await
            .unwrap();
        assert_eq!(a, Revision(2));
        store
            .put("/registry/b", value("2"), Expect::Absent)
            .await
            .unwrap();
        store
            .put("/registry/a", value("3"), Expect::Modified(a))
            .await
            .unwrap();
    }
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), Revision(4));
    let (entry, _) = store.get("/registry/a").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(
        (entry.created, entry.modified, &entry.value[..]),
        (Revision(2), Revision(4), &b"3"[..])
    );
    let then = store
        .range("/registry/", None, 0, Some(Revision(3)))
        .await
        .unwrap();
    assert_eq!(
        then.entries
            .iter()
            .map(|e| &e.value[..])
            .collect::<Vec<_>>(),
        [b"1", b"2"]
    );
    let seen: Vec<_> = store
        .watch("/registry/a", Revision(1))
        .await
        .unwrap()
        .filter_map(async |w| match w.unwrap() {
            Watched::Event(event) => Some(event.revision()),
            Watched::Progress(_) => None,
        })
        .take(2)
        .collect()
        .await;
    assert_eq!(seen, [Revision(2), Revision(4)]);
}

#[tokio::test]
async fn a_store_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let _first = Embedded::open(&path).unwrap();
    assert!(matches!(
        Embedded::open(&path),
        Err(OpenError::Locked { .. })
    ));
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, "not a store, but somebody's text\n".repeat(200)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(
        Embedded::open(&path),
        Err(OpenError::Corrupt { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
