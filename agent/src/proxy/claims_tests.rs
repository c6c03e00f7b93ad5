//! Who has an address that several ask for, and what they are told.

use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::sync::mpsc;

use super::handle::ProxyHandle;
use super::metrics::Metrics;
use super::policy::AddressKind;
use super::reconcile::{Settings, Worker};
use super::state::LbState;
use super::testing::*;
use crate::cluster::{
    Cluster, HostPort, HostPorts, Locality, Node, ObjectKey, Protocol, Service, View,
};
use crate::dataplane::fake::FakeMaps;
use crate::events::Events;

fn made(address: &str, created: i64) -> Service {
    Service {
        created,
        uid: Some(uuid::Uuid::from_u128(7)),
        ..service(address)
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

/// Does a pass for `name` alone, as when the services are seen one after another.
fn seen(state: &mut LbState, view: &View, name: &str) {
    pass(state, view, &[key(name)].into(), |_| true);
}

fn owner(state: &LbState) -> Option<ObjectKey> {
    let mut all = state.frontends();
    all.next().and_then(|(_, live)| live.owner.clone())
}

#[test]
fn while_not_all_is_known_the_older_service_has_the_address() {
    let both = view(vec![
        (
            "thief",
            made("10.96.0.1", 200),
            vec![endpoint(1, "a", "z1")],
        ),
        ("web", made("10.96.0.1", 100), vec![endpoint(2, "a", "z1")]),
    ]);
    for order in [["thief", "web"], ["web", "thief"]] {
        let mut state = LbState::new();
        for name in order {
            seen(&mut state, &both, name);
        }
        assert_eq!(owner(&state), Some(key("web")), "{order:?}");
        let waits = state.conflicts_of(&key("thief"));
        assert_eq!(waits.len(), 1, "{order:?}");
        assert_eq!(waits[0].1, Some(&key("web")));
        assert!(state.conflicts_of(&key("web")).is_empty());

        // It goes, and who waited has the address.
        state.set_synced();
        let mut left = both.clone();
        left.set_service(key("web"), None);
        seen(&mut state, &left, "web");
        assert_eq!(owner(&state), Some(key("thief")), "{order:?}");
    }
}

#[test]
fn once_all_is_known_whoever_has_the_address_keeps_it() {
    let mut state = LbState::new();
    state.set_synced();
    let both = view(vec![
        ("old", made("10.96.0.1", 100), vec![endpoint(1, "a", "z1")]),
        ("web", made("10.96.0.1", 200), vec![endpoint(2, "a", "z1")]),
    ]);
    seen(&mut state, &both, "web");
    seen(&mut state, &both, "old");
    assert_eq!(owner(&state), Some(key("web")));
}

#[test]
fn a_host_port_stays_until_every_pod_of_the_node_was_heard_of() {
    let pod = |name: &str| ObjectKey::of_pod("ns", name);
    let mut view = view(vec![]);
    for (name, port) in [("stays", 8081), ("goes", 8082)] {
        let ports = HostPorts {
            addresses: vec![ip(7)],
            ports: vec![HostPort {
                name: "".into(),
                protocol: Protocol::Tcp,
                address: None,
                port,
                container_port: 80,
            }],
            ..HostPorts::default()
        };
        view.set_host_ports(pod(name), Some(ports));
    }
    let (mut state, mut maps) = (LbState::new(), Maps::default());
    let both = [pod("stays"), pod("goes")].into();
    pass(&mut state, &view, &both, |op| {
        maps.apply(op);
        true
    });

    // A new agent knows the cluster before it knows its pods.
    let mut state = LbState::adopt(maps.pinned(), 1);
    view.host_ports.clear();
    state.set_synced();
    let kinds: Vec<_> = state.frontends().map(|(_, live)| live.kind).collect();
    assert_eq!(kinds, [AddressKind::HostPort; 4]);
    assert_eq!(state.orphans(), []);
    assert_eq!(state.frontends().count(), 4);
    state.set_host_ports_known();
    assert_eq!(state.orphans().len(), 4);
}

/// An API server that takes events, and hands them on.
pub(super) fn listener() -> (Client, mpsc::UnboundedReceiver<Value>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let sender = sender.clone();
        async move {
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let _ = sender.send(serde_json::from_slice(&bytes).unwrap());
            Ok::<_, Infallible>(Response::new(Body::from(bytes.to_vec())))
        }
    });
    (Client::new(service, "default"), receiver)
}

#[tokio::test]
async fn what_is_wrong_with_a_service_is_told_once() {
    let (client, mut told) = listener();
    let cluster = Cluster::default();
    cluster.update(|known| {
        *known = view(vec![
            ("aim", made("10.96.0.1", 1), vec![endpoint(1, "a", "z1")]),
            ("thief", made("10.96.0.1", 2), vec![endpoint(2, "a", "z1")]),
        ]);
        Vec::new()
    });
    cluster.set_synced();
    let settings = Settings {
        node: NODE.into(),
        locality: Locality::Node,
        events: Some(Events::start(client, "kernelet", NODE.into())),
    };
    let metrics = Metrics::new(&mut Registry::default());
    let (proxy, mut changes) = (ProxyHandle::new(LbState::new()), cluster.subscribe());
    let maps = FakeMaps::default();
    let mut worker = Worker::new(
        cluster.clone(),
        settings,
        proxy.clone(),
        metrics,
        maps,
        Blind,
    );
    worker.changed(changes.next().await).await;

    let event = told.recv().await.unwrap();
    assert_eq!(event["involvedObject"]["kind"], "Service");
    assert_eq!(event["involvedObject"]["name"], "thief");
    assert_eq!(
        event["involvedObject"]["uid"],
        "00000000-0000-0000-0000-000000000007"
    );
    assert_eq!(
        (&event["type"], &event["reason"]),
        (&"Warning".into(), &"AddressTaken".into())
    );
    assert_eq!(
        event["message"],
        "another service has the address: 10.96.0.1 port 80 by ns/aim"
    );

    // The node gets an address that a service has: the service loses it, and gets it back when the node does.
    let addresses = |worker: &Worker<FakeMaps, Blind>| worker.maps.state.services.len();
    assert_eq!(addresses(&worker), 1);
    let node = Node {
        internal_ips: vec!["10.96.0.1".parse().unwrap()],
        zone: Some("z1".into()),
        ..Node::default()
    };
    cluster.update(|view| view.set_node(NODE.into(), Some(node)).into_iter().collect());
    worker.changed(changes.next().await).await;
    assert_eq!(addresses(&worker), 0);
    for name in ["aim", "thief"] {
        let event = told.recv().await.unwrap();
        assert_eq!(event["involvedObject"]["name"], name);
        assert_eq!(event["reason"], "InvalidAddress");
        assert_eq!(
            event["message"],
            "a service cannot have a node's address: 10.96.0.1"
        );
    }
    let node = Node {
        zone: Some("z1".into()),
        ..Node::default()
    };
    cluster.update(|view| view.set_node(NODE.into(), Some(node)).into_iter().collect());
    worker.changed(changes.next().await).await;
    assert_eq!(addresses(&worker), 1);
    assert_eq!(told.recv().await.unwrap()["count"], 2, "as at first");

    // Looked at again, all is as it was.
    let everything = cluster.subscribe().next().await;
    worker.changed(everything).await;
    assert!(told.try_recv().is_err(), "nothing is told twice");
}
