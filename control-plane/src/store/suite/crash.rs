//! What kill -9 leaves: a child process writes and says what was acknowledged, and is killed at some moment.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::Rng;

use crate::store::embedded::Embedded;
use crate::store::{Expect, Revision, Store, Write};

/// Names the store's file to the child.
const CHILD: &str = "KERNELET_TEST_CRASH_STORE";
const WRITERS: usize = 8;

/// The key that is always written together with a writer's.
fn twin(writer: &str) -> String {
    format!("/registry/crash-twin/{writer}")
}

/// Not a test of its own: what the child runs, when [`nothing_acknowledged_is_lost`] starts this very test alone.
#[test]
fn crash_child() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    super::runtime().block_on(async {
        let store = Embedded::open(Path::new(&path)).unwrap();
        let writer = |writer: usize| {
            let store = &store;
            async move {
                let key = format!("/registry/crash/{writer}");
                let twin = twin(&writer.to_string());
                let found = async |key: &str| {
                    let entry = store.get(key).await.unwrap().0;
                    entry.map_or(Expect::Absent, |entry| Expect::Modified(entry.modified))
                };
                let mut expect = [found(&key).await, found(&twin).await];
                for n in 0u64.. {
                    let writes = vec![
                        Write::put(key.as_str(), n.to_string(), expect[0]),
                        Write::put(twin.as_str(), n.to_string(), expect[1]),
                    ];
                    let written = store.commit(writes).await.unwrap();
                    expect = [written, Revision(written.0 + 1)].map(Expect::Modified);
                    // One write call a line, so that no line is torn by the kill.
                    let line = format!("ack {writer} {n} {}\n", written.0);
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    if n % 50 == 49 {
                        store.compact(Revision(written.0 - 20)).await.ok();
                    }
                }
            }
        };
        futures::future::join_all((0..WRITERS).map(writer)).await;
    });
}

#[test]
fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let runtime = super::runtime();
    let mut newest = Revision(1);
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::suite::crash::crash_child", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut killed = None;
        let mut acknowledged = BTreeMap::new();
        for line in output.lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let ["ack", writer, n, revision] = words[..] else {
                continue;
            };
            // The clock starts at the first acknowledgement; what comes until the kill counts too.
            killed.get_or_insert_with(|| {
                let pid = child.id();
                let delay = Duration::from_micros(rand::rng().random_range(0..60_000));
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    Command::new("kill")
                        .args(["-9", &pid.to_string()])
                        .status()
                        .unwrap();
                })
            });
            acknowledged.insert(
                writer.to_owned(),
                (n.to_owned(), Revision(revision.parse().unwrap())),
            );
        }
        child.wait().unwrap();
        if let Some(killer) = killed {
            killer.join().unwrap();
        }
        assert!(
            !acknowledged.is_empty(),
            "round {round}: the child wrote nothing"
        );

        runtime.block_on(async {
            let store = Embedded::open(&path).unwrap();
            let current = store.revision().await.unwrap();
            for (writer, (n, revision)) in &acknowledged {
                let entry = store
                    .get(&format!("/registry/crash/{writer}"))
                    .await
                    .unwrap()
                    .0
                    .unwrap();
                // A later write may have been made durable and not yet acknowledged.
                assert!(
                    entry.modified >= *revision,
                    "round {round}: {writer} lost {n}: {entry:?}"
                );
                let (other, _) = store.get(&twin(writer)).await.unwrap();
                let other = other.unwrap().value;
                assert_eq!(entry.value, other, "round {round}: half of a commit");
                if entry.modified == *revision {
                    assert_eq!(entry.value, n.as_bytes());
                }
                newest = newest.max(*revision);
            }
            assert!(
                current >= newest,
                "round {round}: {current:?} is before {newest:?}"
            );
            newest = current;
            let range = store.range("/registry/", None, 0, None).await.unwrap();
            assert_eq!(range.revision, current);
            // The log is whole as well: it can be watched from what compaction left.
            let next = store
                .put("/registry/probe", "1".into(), Expect::Absent)
                .await
                .unwrap();
            assert_eq!(next, Revision(current.0 + 1));
            newest = store.delete("/registry/probe", next).await.unwrap();
        });
    }
}
