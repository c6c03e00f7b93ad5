//! One suite for every store: random histories run against the real one and against [`model`], which is too simple to be
//! wrong, and the answers must be the same.

mod commit;
mod crash;
mod etcd_server;
mod faults;
mod history;
mod measure;
mod model;

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::embedded::Embedded;
use super::etcd::{Etcd, EtcdConfig};
use super::{Revision, Store};
use etcd_server::EtcdServer;
use history::{Operation, history, play};
use model::Model;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

/// Plays `operations` on `store` and on a fresh model and compares the answers, with revisions counted from the start.
async fn compare(
    store: &dyn Store,
    prefix: &str,
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    // What came before this history is out of reach, so that all start alike.
    let base = store.revision().await.unwrap();
    store.compact(base).await.unwrap();
    let expected = play(&Model::default(), Revision(1), prefix, operations).await;
    let got = play(store, base, prefix, operations).await;
    for (step, (expected, got)) in expected.iter().zip(&got).enumerate() {
        prop_assert_eq!(expected, got, "step {}: {:?}", step, operations.get(step));
    }
    prop_assert_eq!(expected.len(), got.len());
    Ok(())
}

#[test]
fn the_embedded_store_answers_as_the_model() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let case = Cell::new(0);
    let mut runner = runner(200);
    let store = RefCell::new(None::<Embedded>);
    let result = runner.run(&history(), |operations| {
        case.set(case.get() + 1);
        // Now and then the same history goes on in a file that was closed and opened again.
        if case.get() % 10 == 1 {
            *store.borrow_mut() = None;
            *store.borrow_mut() = Some(Embedded::open(&dir.path().join("store.redb")).unwrap());
        }
        let store = store.borrow();
        let store = store.as_ref().unwrap();
        runtime.block_on(compare(
            store,
            &format!("/registry/case-{}/", case.get()),
            &operations,
        ))
    });
    result.unwrap();
}

#[test]
fn etcd_answers_as_the_model() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    let runtime = runtime();
    let store = runtime.block_on(Etcd::connect(&server.config())).unwrap();
    let case = Cell::new(0);
    let mut runner = runner(40);
    let result = runner.run(&history(), |operations| {
        case.set(case.get() + 1);
        runtime.block_on(compare(
            &store,
            &format!("/registry/case-{}/", case.get()),
            &operations,
        ))
    });
    result.unwrap();
}
