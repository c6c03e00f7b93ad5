//! Several keys written at once: all or none, whoever else writes.

use std::sync::Arc;

use super::etcd_server::EtcdServer;
use crate::store::embedded::Embedded;
use crate::store::etcd::Etcd;
use crate::store::{Expect, Revision, Store, StoreError, Write};

const PAIRS: usize = 20;

async fn value(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    let (entry, _) = store.get(key).await.unwrap();
    entry.map(|entry| entry.value.to_vec())
}

async fn is_all_or_nothing(store: Arc<dyn Store>) {
    let put = |key: &str, value: &'static str| Write::put(key, value, Expect::Absent);
    let first = store
        .commit(vec![put("/a", "1"), put("/b", "1")])
        .await
        .unwrap();
    let a = store.get("/a").await.unwrap().0.unwrap();
    assert_eq!(a.modified, first);
    let b = store.get("/b").await.unwrap().0.unwrap();
    assert!(b.modified >= first && b.modified <= store.revision().await.unwrap());

    // One key that is not as expected spares the others; the conflict names it and what is there.
    let refused = store
        .commit(vec![
            put("/c", "1"),
            put("/b", "2"),
            Write::delete("/a", Revision(999)),
        ])
        .await;
    let Err(StoreError::Conflict { key, current }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((key.as_str(), current), ("/b", Some(b.clone())));
    assert_eq!(value(&*store, "/c").await, None);

    let moved = vec![
        Write::put("/a", "2", Expect::Modified(a.modified)),
        Write::delete("/b", b.modified),
        put("/c", "2"),
    ];
    store.commit(moved).await.unwrap();
    for (key, expected) in [("/a", Some("2")), ("/b", None), ("/c", Some("2"))] {
        let expected = expected.map(|text| text.as_bytes().to_vec());
        assert_eq!(value(&*store, key).await, expected, "{key}");
    }
    one_of_many_gets_it(store).await;
}

/// Many writers want one of few things, each with a key of its own: as many succeed as there are things.
async fn one_of_many_gets_it(store: Arc<dyn Store>) {
    let writers = (0..PAIRS * 3).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let writes = vec![
                Write::put(format!("/owner/{writer}"), "", Expect::Absent),
                Write::put(
                    format!("/thing/{}", writer % PAIRS),
                    writer.to_string(),
                    Expect::Absent,
                ),
            ];
            store.commit(writes).await
        })
    });
    let mut won = 0;
    for writer in futures::future::join_all(writers).await {
        match writer.unwrap() {
            Ok(_) => won += 1,
            Err(StoreError::Conflict { key, .. }) => assert!(key.starts_with("/thing/"), "{key}"),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(won, PAIRS);
    let owners = store.range("/owner/", None, 0, None).await.unwrap();
    assert_eq!(owners.entries.len(), PAIRS);
}

#[test]
fn a_commit_of_the_embedded_store_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    super::runtime().block_on(async {
        let path = dir.path().join("store.redb");
        is_all_or_nothing(Arc::new(Embedded::open(&path).unwrap())).await;
    });
}

#[test]
fn a_commit_of_etcd_is_all_or_nothing() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    super::runtime().block_on(async {
        is_all_or_nothing(Arc::new(Etcd::connect(&server.config()).await.unwrap())).await;
    });
}
