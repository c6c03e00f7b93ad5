//! The whole way: a question over a real Unix socket to an agent whose maps are made up.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{
    Address, BackendStats, DropReason, ReverseEntry, SocketEntry, SocketKey, TCP,
};

use super::super::socket::{SocketError, bind};
use super::*;
use crate::dataplane::{MapRow, MapSummary, Outside, Totals};
use crate::introspection::introspection_client::IntrospectionClient;
use crate::observe::testing::{FakeReader, FakeRecorder, NODE, World, dialled};
use crate::pod::PodSummary;

/// An agent on node `a` that knows one service with two backends, one with none, and a headless one. A process of the
/// node talks to the first.
fn agent() -> Introspection {
    let world = World::new();
    let pods = PodTable::default();
    pods.put(PodSummary {
        uid: "u".into(),
        namespace: "shop".into(),
        name: "web-1".into(),
        addresses: vec![[10, 244, 0, 1].into()],
        ..PodSummary::default()
    });
    let features = vec![Feature {
        name: "btf",
        available: true,
        detail: String::new(),
    }];
    let clients = Clients::new("/nowhere".into(), pods.clone());
    let mut reader = world.reader();
    let backend = world.backend(1);
    reader.count(
        backend,
        BackendStats {
            opens: 7,
            closes: 5,
            ..BackendStats::default()
        },
    );
    let to = dialled(1, 80);
    let entry = SocketEntry {
        started_ns: 0,
        netns_cookie: clients.cookie(&Client::Host).unwrap_or(1),
        backend_address: Address::v4([10, 244, 0, 1]),
        backend_port: 8080_u16.to_be_bytes(),
        protocol: TCP,
        pad: 0,
        service: ReverseEntry {
            address: to.address,
            port: to.port,
            pad: [0; 2],
            backend,
            service_id: 1,
        },
        flags: 0,
        detail: 80_000,
    };
    reader.sockets.push((SocketKey(u64::MAX), entry));
    Introspection::new(Parts {
        node: NODE.into(),
        cluster: world.cluster,
        proxy: ProxyHandle::new(world.state),
        maps: Arc::new(Elsewhere {
            reader,
            worker: std::thread::current().id(),
        }),
        features,
        pods,
        clients,
        flows: Flows::new(Box::new(FakeRecorder::default())).unwrap(),
    })
}

/// Maps that must not be read on the thread that answers everybody.
struct Elsewhere {
    reader: FakeReader,
    worker: std::thread::ThreadId,
}

impl Elsewhere {
    fn reader(&self) -> &FakeReader {
        assert_ne!(std::thread::current().id(), self.worker, "it would wait");
        &self.reader
    }
}

impl MapReader for Elsewhere {
    fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        self.reader().summaries()
    }
    fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        self.reader().rows(name)
    }
    fn lookup(&self, key: &ServiceKey, netns: Option<u64>) -> Result<Option<Lookup>, MapError> {
        self.reader().lookup(key, netns)
    }
    fn sockets(&self) -> Result<Vec<(SocketKey, SocketEntry)>, MapError> {
        self.reader().sockets()
    }
    fn outside(&self) -> Result<Vec<Outside>, MapError> {
        self.reader().outside()
    }
    fn drops(&self) -> Result<BTreeMap<DropReason, u64>, MapError> {
        self.reader().drops()
    }
    fn totals(&self) -> Result<Totals, MapError> {
        self.reader().totals()
    }
    fn traffic(&self) -> Result<BTreeMap<Address, PodTraffic>, MapError> {
        self.reader().traffic()
    }
}

/// Serves `agent` on a socket in a directory of its own, which has to be kept.
async fn serve(
    agent: Introspection,
) -> (
    IntrospectionClient<tonic::transport::Channel>,
    tempfile::TempDir,
) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/kernelet.sock");
    let listener = bind(&socket).await.unwrap();
    tokio::spawn(agent.serve(listener, std::future::pending()));
    let address = format!("unix://{}", socket.display());
    (IntrospectionClient::connect(address).await.unwrap(), dir)
}

#[tokio::test]
async fn a_service_is_explained_down_to_its_map_entries() {
    let (mut client, _dir) = serve(agent()).await;
    let request = api::ShowServiceRequest {
        namespace: "shop".into(),
        name: "web".into(),
    };
    let reply = client.show_service(request).await.unwrap().into_inner();
    assert_eq!(reply.notes, ["only TCP and UDP are translated: 81/SCTP"]);
    let [detail] = &reply.ports[..] else {
        panic!("one address: {reply:?}")
    };
    let service = detail.service.as_ref().unwrap();
    assert_eq!(
        (service.address.as_str(), service.local, service.ready),
        ("10.96.0.1:80", 1, 2)
    );
    assert_eq!(service.policy, "prefer node");
    let [near, far] = &detail.backends[..] else {
        panic!("two backends: {detail:?}")
    };
    assert_eq!(
        (near.node.as_str(), near.pod.as_str(), near.local),
        ("a", "shop/web-1", true)
    );
    assert_eq!((near.opens, near.active), (7, 2));
    assert!(near.share > 0.98 && far.share < 0.02 && !far.local);
    assert_eq!(detail.entries[0].key, "10.96.0.1:80 TCP");
}

#[tokio::test]
async fn what_has_no_address_says_why() {
    let agent = agent();
    let cluster = agent.cluster.clone();
    let (mut client, _dir) = serve(agent).await;
    let request = api::ShowServiceRequest {
        namespace: "shop".into(),
        name: "headless".into(),
    };
    let reply = client.show_service(request).await.unwrap().into_inner();
    assert!(reply.ports.is_empty() && reply.notes[0].starts_with("headless"));
    let request = api::ShowServiceRequest {
        namespace: "shop".into(),
        name: "nobody".into(),
    };
    let error = client.show_service(request.clone()).await.unwrap_err();
    let code = error.code();
    assert_eq!(code, tonic::Code::Unavailable, "it may be heard of later");
    cluster.set_synced();
    let error = client.show_service(request).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (tonic::Code::NotFound, "there is no service shop/nobody")
    );
}

#[tokio::test]
async fn every_list_has_an_answer() {
    let mut agent = agent();
    agent.component("pods", || ComponentHealth {
        healthy: false,
        detail: "containerd is away".into(),
    });
    let (mut client, _dir) = serve(agent).await;
    let status = client
        .status(api::StatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let parts: Vec<_> = status
        .components
        .iter()
        .map(|part| (part.name.as_str(), part.healthy))
        .collect();
    assert_eq!(
        parts,
        [("api", false), ("proxy", false), ("pods", false)],
        "nothing is synced yet"
    );
    assert_eq!(status.features[0].name, "btf");

    let of = |namespace: &str| api::ListServicesRequest {
        namespace: namespace.into(),
    };
    assert_eq!(
        client
            .list_services(of(""))
            .await
            .unwrap()
            .into_inner()
            .services
            .len(),
        2
    );
    assert!(
        client
            .list_services(of("other"))
            .await
            .unwrap()
            .into_inner()
            .services
            .is_empty()
    );
    let backends = client
        .list_backends(api::ListBackendsRequest {})
        .await
        .unwrap()
        .into_inner()
        .backends;
    assert_eq!(
        backends
            .iter()
            .map(|b| b.services.join(","))
            .collect::<Vec<_>>(),
        ["shop/web", "shop/web"]
    );
    assert_eq!(
        client
            .list_maps(api::ListMapsRequest {})
            .await
            .unwrap()
            .into_inner()
            .maps[0]
            .entries,
        1
    );
    let listed = client.list_pods(api::ListPodsRequest {}).await.unwrap();
    let pod = listed.into_inner().pods.remove(0);
    assert_eq!(pod.name, "web-1");
    assert_eq!(pod.traffic.map(|it| it.received_bytes), Some(2000));

    let dump = |name: &str| api::DumpMapRequest { name: name.into() };
    let mut rows = client
        .dump_map(dump("SERVICES"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(rows.message().await.unwrap().unwrap().raw_key, [1]);
    assert!(rows.message().await.unwrap().is_none());
    assert_eq!(
        client.dump_map(dump("NOPE")).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
}

#[tokio::test]
async fn the_socket_is_for_root_alone_and_for_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/kernelet.sock");
    let first = bind(&socket).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
    assert!(matches!(bind(&socket).await, Err(SocketError::Busy { .. })));
    drop(first);
    bind(&socket)
        .await
        .expect("a dead agent's socket is replaced");
}

#[tokio::test]
async fn a_connection_is_listed_under_its_names() {
    let (mut client, _dir) = serve(agent()).await;
    let request = api::ListConnectionsRequest {
        service: "shop/web".into(),
        pod: String::new(),
    };
    let reply = client.list_connections(request).await.unwrap().into_inner();
    let [connection] = &reply.connections[..] else {
        panic!("one: {reply:?}")
    };
    assert_eq!(
        (
            connection.service.as_str(),
            connection.backend_pod.as_str(),
            connection.dialled.as_str()
        ),
        ("shop/web", "shop/web-1", "10.96.0.1:80")
    );
    assert_eq!(connection.handshake_seconds, Some(0.000_08));
    assert_eq!(connection.state, "", "the kernel has no such socket");
    let request = api::ListConnectionsRequest {
        service: String::new(),
        pod: "shop/other".into(),
    };
    let reply = client.list_connections(request).await.unwrap().into_inner();
    assert!(reply.connections.is_empty());
}

#[tokio::test]
async fn a_trace_says_what_would_happen_or_why_nothing_can_be_said() {
    let (mut client, _dir) = serve(agent()).await;
    let request = |from: &str, to: &str| api::TraceRequest {
        from: from.into(),
        to: to.into(),
        protocol: String::new(),
    };
    let reply = client.trace(request("host", "shop/web:http")).await;
    let traces = reply.unwrap().into_inner().traces;
    assert_eq!((traces.len(), traces[0].outcome.as_str()), (1, "drawn"));
    let error = client.trace(request("shop/nobody", "shop/web:80")).await;
    assert_eq!(
        error.unwrap_err().message(),
        "there is no pod shop/nobody on node a"
    );
    let error = client.trace(request("host", "shop/web:99")).await;
    assert_eq!(error.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_watch_ends_when_its_caller_hangs_up() {
    let agent = agent();
    let flows = agent.flows.clone();
    let (mut client, _dir) = serve(agent).await;
    let request = api::WatchFlowsRequest::default();
    let stream = client.watch_flows(request).await.unwrap().into_inner();
    assert_eq!(flows.watchers_now(), 1);
    drop(stream);
    drop(client);
    while flows.watchers_now() > 0 {
        tokio::task::yield_now().await;
    }
}
