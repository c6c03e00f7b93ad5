//! What user space reads of the programs' records and counters, in the real kernel.

use std::io::Read;
use std::net::TcpStream;

use agent_ebpf::abi::{
    BackendId, EVENT_CLOSED, EVENT_ESTABLISHED, EVENT_NO_BACKEND, EVENT_OPENED, FlowEvent,
    ServiceKey, SlotKey, TCP, maps as names,
};

use super::testing::{dialled, entry, on_scratch_node, put, service, soon, tcp_backend};
use super::{
    ClosingMaps, Events, MapOp, Retired, ServiceMaps, Sockets, monotonic_ns, netns_cookie,
};

fn web() -> ServiceKey {
    service(1, 80, TCP)
}

/// Reads until an event of this kind has come.
async fn until(events: &mut Events, kind: u8) -> Vec<FlowEvent> {
    let mut read = Vec::new();
    while !read.iter().any(|event: &FlowEvent| event.kind == kind) {
        let most = read.len() + 1;
        events.next(&mut read, most).await.unwrap();
    }
    read
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(work)
}

fn dial(key: ServiceKey) -> std::io::Result<()> {
    let mut name = String::new();
    TcpStream::connect(dialled(key))?.read_to_string(&mut name)?;
    Ok(())
}

#[test]
fn a_connections_records_are_read_from_its_beginning_to_its_end() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let (maps, empty) = (&mut dataplane.maps, service(2, 80, TCP));
        maps.apply_all(&put(web(), entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]))
            .unwrap();
        maps.apply(&MapOp::PutService(empty, entry(2, 1, 0, 0)))
            .unwrap();
        dial(empty).unwrap_err();

        wait(async {
            let mut events = Events::open(&dataplane.dir).unwrap();
            dataplane.maps.set_sampling(1).unwrap();
            let begun = monotonic_ns();
            dial(web()).unwrap();
            let read = until(&mut events, EVENT_CLOSED).await;
            let kinds: Vec<u8> = read.iter().map(|event| event.kind).collect();
            assert_eq!(
                kinds,
                [EVENT_OPENED, EVENT_ESTABLISHED, EVENT_CLOSED],
                "what was there before is old, and gone"
            );
            let here = netns_cookie("/proc/thread-self/ns/net".as_ref()).unwrap();
            for event in &read {
                assert_eq!((event.netns_cookie, event.backend), (here, BackendId(1)));
                assert!(event.time_ns >= begun && event.time_ns <= monotonic_ns());
            }

            dataplane.maps.set_sampling(0).unwrap();
            dial(web()).unwrap();
            dial(empty).unwrap_err();
            let read = until(&mut events, EVENT_NO_BACKEND).await;
            assert_eq!(read.len(), 1, "refusals are recorded when nothing else is");
            assert_eq!(read[0].service_id, 2);
        });
    });
}

#[test]
fn rows_are_counted_whatever_the_map() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(web(), entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]))
            .unwrap();
        dial(web()).unwrap();
        // More than one batch.
        for slot in 0..10_000 {
            let key = SlotKey {
                service_id: 9,
                generation: 1,
                slot,
            };
            maps.apply(&MapOp::PutSlot(key, BackendId(1))).unwrap();
        }
        let fill = |name| {
            let all = maps.summaries().unwrap();
            all.iter().find(|map| map.name == name).unwrap().entries
        };
        assert_eq!(fill(names::BACKEND_TABLE), 10_001);
        assert_eq!(fill(names::STATS), 1, "a row for each CPU is one row");
        assert_eq!((fill(names::SERVICES), fill(names::AFFINITY)), (1, 0));
    });
}

#[test]
fn a_backend_that_goes_leaves_its_last_words() {
    on_scratch_node(|node| {
        let mut dataplane = node.start();
        let maps = &mut dataplane.maps;
        maps.apply_all(&put(web(), entry(1, 1, 1, 1), &[(1, tcp_backend("a"))]))
            .unwrap();
        dial(web()).unwrap();
        assert!(soon(
            || maps.backend_stats(BackendId(1)).unwrap().closes == 1
        ));
        let retired = Retired::default();
        let mut maps = ClosingMaps::new(dataplane.maps, "/nowhere".into()).telling(retired.clone());
        let idle = MapOp::DeleteBackend(BackendId(2), Sockets::Keep);
        let used = MapOp::DeleteBackend(BackendId(1), Sockets::Keep);
        assert_eq!(maps.remove_all(vec![idle, used]).len(), 0);
        let words = retired.take();
        assert_eq!(words.keys().collect::<Vec<_>>(), [&BackendId(1)]);
        assert_eq!(words[&BackendId(1)].opens, 1);
        assert!(retired.take().is_empty());
    });
}
