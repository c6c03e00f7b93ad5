//! Figures, not a test: `cargo test --workspace --lib -- --ignored --nocapture store::suite::measure`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::etcd_server::EtcdServer;
use crate::store::embedded::Embedded;
use crate::store::etcd::Etcd;
use crate::store::{Expect, Store};

/// About a small Pod.
const VALUE: usize = 1_500;
const TIME: Duration = Duration::from_secs(4);

#[test]
#[ignore = "prints figures"]
fn puts() {
    let runtime = super::runtime();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let embedded = Arc::new(Embedded::open(&dir.path().join("store.redb")).unwrap());
        let server = EtcdServer::start();
        println!(
            "{:10} {:>8} {:>9} {:>9} {:>9}",
            "store", "writers", "puts/s", "p50", "p99"
        );
        for writers in [1, 32] {
            measure("embedded", embedded.clone(), writers).await;
            if let Some(server) = &server {
                let etcd = Etcd::connect(&server.config()).await.unwrap();
                measure("etcd", Arc::new(etcd), writers).await;
            }
        }
        // The file as a crash would leave it: no farewell was written.
        let file = dir.path().join("store.redb");
        let crashed = dir.path().join("crashed.redb");
        let size = std::fs::copy(&file, &crashed).unwrap() >> 20;
        let begin = Instant::now();
        drop(Embedded::open(&crashed).unwrap());
        println!(
            "open of {size} MiB after a crash: {:.0} ms",
            begin.elapsed().as_secs_f64() * 1e3
        );
    });
}

async fn measure(name: &str, store: Arc<dyn Store>, writers: usize) {
    let start = Instant::now();
    let tasks = (0..writers).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            let value = Bytes::from(vec![b'x'; VALUE]);
            let key = format!("/registry/pods/measure-{writers}/{writer}");
            let mut expect = Expect::Absent;
            while start.elapsed() < TIME {
                let begin = Instant::now();
                expect = Expect::Modified(store.put(&key, value.clone(), expect).await.unwrap());
                times.push(begin.elapsed());
            }
            times
        })
    });
    let mut times: Vec<Duration> = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.unwrap());
    }
    times.sort();
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:10} {writers:>8} {rate:>9.0} {:>6.2} ms {:>6.2} ms",
        at(0.5),
        at(0.99)
    );
}
