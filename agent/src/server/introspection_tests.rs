//! The whole way: a question over a real Unix socket to an agent whose maps are made up.

use std::collections::BTreeMap;

use agent_ebpf::abi::{BackendId, BackendStats};

use super::*;
use crate::cluster::{Endpoint, Locality, Node, Protocol, Service, ServicePort, Slice, SlicePort};
use crate::introspection::introspection_client::IntrospectionClient;
use crate::pod::PodSummary;
use crate::proxy::{LbState, desired};

/// Maps with one row each, and counters.
struct FakeReader;

fn row(map: &'static str, key: String) -> MapRow {
    MapRow {
        map,
        key,
        value: "v".into(),
        raw_key: vec![1],
        raw_value: vec![2],
    }
}

impl MapReader for FakeReader {
    fn summaries(&self) -> Result<Vec<MapSummary>, MapError> {
        Ok(vec![MapSummary {
            name: "SERVICES",
            kind: "Hash".into(),
            entries: 1,
            max_entries: 9,
            pin: "/p".into(),
        }])
    }
    fn rows(&self, name: &str) -> Result<Vec<MapRow>, MapError> {
        match name {
            "SERVICES" => Ok(vec![row("SERVICES", "k".into())]),
            other => Err(MapError::Unknown { name: other.into() }),
        }
    }
    fn rows_behind(&self, key: &ServiceKey) -> Result<Vec<MapRow>, MapError> {
        Ok(vec![row("SERVICES", format!("{:?}", key.address))])
    }
    fn totals(&self) -> Result<Totals, MapError> {
        let stats = BackendStats {
            opens: 7,
            closes: 5,
            ..BackendStats::default()
        };
        Ok(Totals {
            backends: BTreeMap::from([(BackendId(1), stats)]),
            ..Totals::default()
        })
    }
}

fn endpoint(last: u8, node: &str) -> Endpoint {
    Endpoint {
        addresses: vec![[10, 244, 0, last].into()],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        pod: Some(format!("web-{last}").into()),
        ..Endpoint::default()
    }
}

/// An agent on node `a` that knows one service with two backends, and a headless one.
fn agent() -> Introspection {
    let (cluster, web) = (Cluster::default(), ObjectKey::new("shop", "web"));
    let mut state = LbState::new();
    cluster.update(|view| {
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        };
        let sctp = ServicePort {
            name: "sig".into(),
            protocol: Protocol::Sctp,
            port: 81,
            node_port: None,
        };
        let service = Service {
            cluster_ips: vec![[10, 96, 0, 1].into()],
            ports: vec![port, sctp],
            ..Service::default()
        };
        view.set_service(web.clone(), Some(service));
        let headless = Service {
            headless: true,
            ..Service::default()
        };
        view.set_service(ObjectKey::new("shop", "headless"), Some(headless));
        view.set_node("a".into(), Some(Node::default()));
        let port = SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        };
        let endpoints = vec![endpoint(1, "a"), endpoint(2, "b")];
        view.set_slice(
            ObjectKey::new("shop", "web-1"),
            Some(Slice {
                service: "web".into(),
                ports: vec![port],
                endpoints,
                ..Slice::default()
            }),
        );
        let (frontends, ignored) = desired(view, "a", Locality::Node, &web);
        for frontend in state.assign(&web, frontends, ignored) {
            let flip = state.plan(&web, &frontend).unwrap();
            state.settle(flip, true);
        }
        Vec::new()
    });
    let pods = PodTable::default();
    pods.put(PodSummary {
        uid: "u".into(),
        name: "web-1".into(),
        ..PodSummary::default()
    });
    let features = vec![Feature {
        name: "btf",
        available: true,
        detail: String::new(),
    }];
    Introspection::new(
        "a".into(),
        cluster,
        ProxyHandle::new(state),
        Arc::new(FakeReader),
        features,
        pods,
    )
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
    assert_eq!(detail.entries[0].key, "10.96.0.1");
}

#[tokio::test]
async fn what_has_no_address_says_why() {
    let (mut client, _dir) = serve(agent()).await;
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
        1
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
    assert_eq!(
        client
            .list_pods(api::ListPodsRequest {})
            .await
            .unwrap()
            .into_inner()
            .pods[0]
            .name,
        "web-1"
    );

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
