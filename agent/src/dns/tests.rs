//! Questions and answers, as values and over real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::{TcpStream, UdpSocket};

use super::answer::{Answer, answer};
use super::forward::{Forwarder, read_framed, write_framed};
use super::server::DnsServer;
use crate::cluster::{
    Cluster, Endpoint, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort, View,
};

fn zone() -> Name {
    Name::from_str("cluster.local.").unwrap()
}

fn port(name: &str, protocol: Protocol, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port: None,
    }
}

fn endpoint(address: &str, ready: bool, hostname: Option<&str>) -> Endpoint {
    Endpoint {
        addresses: vec![address.parse().unwrap()],
        ready,
        serving: ready,
        hostname: hostname.map(Into::into),
        ..Endpoint::default()
    }
}

/// A cluster with one service of each form in namespace `shop`.
fn view() -> View {
    let mut view = View {
        synced: true,
        ..View::default()
    };
    let mut service = |name: &str, service: Service| {
        view.services
            .insert(ObjectKey::new("shop", name), Arc::new(service));
    };
    service(
        "backend",
        Service {
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            ports: vec![port("http", Protocol::Tcp, 80)],
            ..Service::default()
        },
    );
    for (name, publish_not_ready) in [("db", false), ("early", true), ("empty", false)] {
        let ports = vec![port("sql", Protocol::Tcp, 5432)];
        service(
            name,
            Service {
                headless: true,
                publish_not_ready,
                ports,
                ..Service::default()
            },
        );
    }
    for (name, target) in [
        ("web", "www.example.org"),
        ("alias", "backend.shop.svc.cluster.local."),
    ] {
        let external_name = Some(target.into());
        service(
            name,
            Service {
                external_name,
                ..Service::default()
            },
        );
    }
    let loop_target = Some("loop.shop.svc.cluster.local".into());
    service(
        "loop",
        Service {
            external_name: loop_target,
            ..Service::default()
        },
    );

    for (service, endpoints) in [
        (
            "db",
            vec![
                endpoint("10.244.1.2", true, Some("db-0")),
                endpoint("10.244.2.2", true, None),
                endpoint("10.244.2.3", false, Some("db-2")),
            ],
        ),
        (
            "early",
            vec![endpoint("10.244.3.3", false, Some("early-0"))],
        ),
    ] {
        let slice = Slice {
            service: service.into(),
            ports: vec![SlicePort {
                name: "sql".into(),
                protocol: Protocol::Tcp,
                port: 5432,
            }],
            endpoints,
            ..Slice::default()
        };
        let name = format!("{service}-1");
        view.slices_of
            .insert(ObjectKey::new("shop", service), vec![name.as_str().into()]);
        view.slices
            .insert(ObjectKey::new("shop", name), Arc::new(slice));
    }
    view
}

fn query(name: &str, kind: RecordType) -> Query {
    Query::query(Name::from_str(name).unwrap(), kind)
}

/// The answer in one line: data of the records, sorted, or the kind of "no".
fn ask(name: &str, kind: RecordType) -> String {
    describe(answer(&view(), &zone(), &query(name, kind)))
}

fn describe(answer: Answer) -> String {
    let data = |records: Vec<Record>| {
        let mut data: Vec<_> = records
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        data.sort();
        data.join(", ")
    };
    match answer {
        Answer::Records {
            answers,
            additionals,
        } if additionals.is_empty() => data(answers),
        Answer::Records {
            answers,
            additionals,
        } => format!("{} + {}", data(answers), data(additionals)),
        Answer::Alias { chain, target } => format!("{} -> ask {target}", data(chain)),
        other => format!("{other:?}"),
    }
}

#[test]
fn every_name_of_the_specification_is_answered() {
    use RecordType::{A, AAAA, CNAME, MX, PTR, SRV, TXT};
    for (name, kind, expected) in [
        // A service with an address.
        ("backend.shop.svc.cluster.local.", A, "10.96.0.7"),
        ("BackEnd.Shop.SVC.Cluster.Local.", A, "10.96.0.7"),
        ("backend.shop.svc.cluster.local.", AAAA, "NoData"),
        ("backend.shop.svc.cluster.local.", MX, "NoData"),
        (
            "_http._tcp.backend.shop.svc.cluster.local.",
            SRV,
            "0 100 80 backend.shop.svc.cluster.local. + 10.96.0.7",
        ),
        (
            "_http._udp.backend.shop.svc.cluster.local.",
            SRV,
            "NoSuchName",
        ),
        (
            "_none._tcp.backend.shop.svc.cluster.local.",
            SRV,
            "NoSuchName",
        ),
        ("_tcp.backend.shop.svc.cluster.local.", SRV, "NoData"),
        ("_udp.backend.shop.svc.cluster.local.", SRV, "NoSuchName"),
        ("x.backend.shop.svc.cluster.local.", A, "NoSuchName"),
        // Headless services: ready endpoints, or all where the service says so.
        ("db.shop.svc.cluster.local.", A, "10.244.1.2, 10.244.2.2"),
        ("db.shop.svc.cluster.local.", AAAA, "NoData"),
        ("early.shop.svc.cluster.local.", A, "10.244.3.3"),
        ("empty.shop.svc.cluster.local.", A, "NoSuchName"),
        ("db-0.db.shop.svc.cluster.local.", A, "10.244.1.2"),
        ("DB-0.db.shop.svc.cluster.local.", A, "10.244.1.2"),
        ("10-244-2-2.db.shop.svc.cluster.local.", A, "10.244.2.2"),
        ("db-2.db.shop.svc.cluster.local.", A, "NoSuchName"),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            SRV,
            "0 100 5432 10-244-2-2.db.shop.svc.cluster.local., \
             0 100 5432 db-0.db.shop.svc.cluster.local. + 10.244.1.2, 10.244.2.2",
        ),
        // ExternalName.
        (
            "web.shop.svc.cluster.local.",
            A,
            "www.example.org. -> ask www.example.org.",
        ),
        ("web.shop.svc.cluster.local.", CNAME, "www.example.org."),
        (
            "alias.shop.svc.cluster.local.",
            A,
            "10.96.0.7, backend.shop.svc.cluster.local.",
        ),
        ("loop.shop.svc.cluster.local.", A, "NoData"),
        // Reverse.
        (
            "7.0.96.10.in-addr.arpa.",
            PTR,
            "backend.shop.svc.cluster.local.",
        ),
        (
            "2.1.244.10.in-addr.arpa.",
            PTR,
            "db-0.db.shop.svc.cluster.local.",
        ),
        (
            "2.2.244.10.in-addr.arpa.",
            PTR,
            "10-244-2-2.db.shop.svc.cluster.local.",
        ),
        ("7.0.96.10.in-addr.arpa.", TXT, "NoData"),
        ("9.9.9.9.in-addr.arpa.", PTR, "NotOurs"),
        ("96.10.in-addr.arpa.", PTR, "NotOurs"),
        // Pods by address, and names between the zone and a service.
        ("10-244-1-2.shop.pod.cluster.local.", A, "10.244.1.2"),
        ("nonsense.shop.pod.cluster.local.", A, "NoSuchName"),
        ("shop.svc.cluster.local.", A, "NoData"),
        ("other.svc.cluster.local.", A, "NoSuchName"),
        ("svc.cluster.local.", A, "NoData"),
        ("cluster.local.", A, "NoData"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        // Neither the cluster's nor anything like it.
        ("backend.cluster.local.", A, "NoSuchName"),
        ("backend.shop.svc.", A, "NotOurs"),
        ("example.org.", A, "NotOurs"),
        ("notcluster.local.", A, "NotOurs"),
    ] {
        assert_eq!(ask(name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn services_and_endpoints_of_both_families_have_records_of_both() {
    use RecordType::{A, AAAA, ANY, PTR};
    let mut view = view();
    let key = |name: &str| ObjectKey::new("shop", name);
    let dual = Service {
        cluster_ips: ["10.96.0.8", "fd00:96::8"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        ..Service::default()
    };
    let headless = Service {
        headless: true,
        ..Service::default()
    };
    view.services.insert(key("dual"), Arc::new(dual));
    view.services.insert(key("pods"), Arc::new(headless));
    for (slice, endpoints) in [
        ("pods-4", ["10.244.1.2", "10.244.1.3"]),
        ("pods-6", ["fd00:0:0:1::2", "fd00:0:0:1::"]),
    ] {
        let endpoints = [(endpoints[0], Some("pod-0")), (endpoints[1], None)];
        let slice_of = Slice {
            service: "pods".into(),
            endpoints: endpoints.map(|(ip, host)| endpoint(ip, true, host)).into(),
            ..Slice::default()
        };
        view.slices.insert(key(slice), Arc::new(slice_of));
    }
    let slices = vec!["pods-4".into(), "pods-6".into()];
    view.slices_of.insert(key("pods"), slices);
    let zeros = "0.".repeat(23);
    for (name, kind, expected) in [
        ("dual.shop.svc.cluster.local.", A, "10.96.0.8"),
        ("dual.shop.svc.cluster.local.", AAAA, "fd00:96::8"),
        ("dual.shop.svc.cluster.local.", ANY, "10.96.0.8, fd00:96::8"),
        (
            "pods.shop.svc.cluster.local.",
            AAAA,
            "fd00:0:0:1::, fd00:0:0:1::2",
        ),
        ("pod-0.pods.shop.svc.cluster.local.", A, "10.244.1.2"),
        ("pod-0.pods.shop.svc.cluster.local.", AAAA, "fd00:0:0:1::2"),
        (
            "fd00-0-0-1--0.pods.shop.svc.cluster.local.",
            AAAA,
            "fd00:0:0:1::",
        ),
        (
            &format!("8.{zeros}6.9.0.0.0.0.d.f.ip6.arpa."),
            PTR,
            "dual.shop.svc.cluster.local.",
        ),
        (
            &format!("2.{}1.{}d.f.ip6.arpa.", "0.".repeat(15), "0.".repeat(13)),
            PTR,
            "pod-0.pods.shop.svc.cluster.local.",
        ),
        (
            "fd00-0-0-1--2.shop.pod.cluster.local.",
            AAAA,
            "fd00:0:0:1::2",
        ),
        ("fd00-0-0-1--2.shop.pod.cluster.local.", A, "NoData"),
        ("9.6.ip6.arpa.", PTR, "NotOurs"),
    ] {
        let given = describe(answer(&view, &zone(), &query(name, kind)));
        assert_eq!(given, expected, "{name} {kind}");
    }
}

#[test]
fn what_is_not_seen_yet_is_not_denied() {
    let view = View {
        synced: false,
        ..view()
    };
    let ask = |name, kind| describe(answer(&view, &zone(), &query(name, kind)));
    assert_eq!(
        ask("other.shop.svc.cluster.local.", RecordType::A),
        "NotKnownYet"
    );
    assert_eq!(ask("9.9.9.9.in-addr.arpa.", RecordType::PTR), "NotKnownYet");
    assert_eq!(
        ask("backend.shop.svc.cluster.local.", RecordType::A),
        "10.96.0.7"
    );
    assert_eq!(ask("example.org.", RecordType::A), "NotOurs");
}

#[test]
fn the_answer_bears_the_name_as_it_was_asked() {
    let asked = query("BackEnd.shop.svc.cluster.local.", RecordType::A);
    let Answer::Records { answers, .. } = answer(&view(), &zone(), &asked) else {
        panic!("no records")
    };
    assert!(answers[0].name.eq_case(&asked.name));
}

/// A resolver of the node's that knows one name.
async fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.3:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut response = Message::response(question.metadata.id, OpCode::Query);
            response.queries = question.queries.clone();
            let name = question.queries[0].name.clone();
            if name == Name::from_str("www.example.org.").unwrap() {
                let canonical = Name::from_str("host.example.org.").unwrap();
                response.answers = vec![
                    Record::from_rdata(name, 60, RData::CNAME(CNAME(canonical.clone()))),
                    Record::from_rdata(
                        canonical,
                        60,
                        RData::A(Ipv4Addr::new(192, 0, 2, 80).into()),
                    ),
                ];
            } else {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            socket
                .send_to(&response.to_vec().unwrap(), client)
                .await
                .unwrap();
        }
    });
    address
}

/// A server over that view; `resolvers` stands in the node's resolv.conf.
async fn serve(view: View, resolvers: &[IpAddr], port: u16) -> SocketAddr {
    serve_cluster(view, resolvers, port).await.0
}

async fn serve_cluster(view: View, resolvers: &[IpAddr], port: u16) -> (SocketAddr, Cluster) {
    let cluster = Cluster::default();
    cluster.update(move |there| {
        *there = view;
        Vec::new()
    });
    let conf = tempfile::NamedTempFile::new().unwrap();
    let text: String = resolvers
        .iter()
        .map(|address| format!("nameserver {address}\n"))
        .collect();
    std::fs::write(conf.path(), text).unwrap();
    let own = IpAddr::from([127, 0, 0, 2]);
    let forwarder = Forwarder::new(conf.path().to_owned(), vec![own]).with_port(port);
    let server =
        DnsServer::bind((own, 0).into(), "cluster.local", cluster.clone(), forwarder).unwrap();
    let address = server.address().unwrap();
    tokio::spawn(async move {
        server.run().await;
        drop(conf);
    });
    (address, cluster)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(query(name, kind));
    message
}

async fn over_udp(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer));
    let length = received.await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn over_tcp(server: SocketAddr, questions: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut answers = Vec::new();
    for question in questions {
        write_framed(&mut stream, &question.to_vec().unwrap())
            .await
            .unwrap();
        answers.push(Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap());
    }
    answers
}

fn data(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

#[tokio::test]
async fn a_service_is_found_over_udp_and_tcp() {
    let server = serve(view(), &[], 53).await;
    let asked = question("backend.shop.svc.cluster.local.", RecordType::A);
    let answer = over_udp(server, &asked.to_vec().unwrap()).await;
    assert_eq!(data(&answer), ["10.96.0.7"]);
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(answer.queries, asked.queries);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert!(answer.edns.is_none(), "EDNS only for who speaks it");

    let missing = question("missing.shop.svc.cluster.local.", RecordType::A);
    let [found, denied] = &over_tcp(server, &[asked, missing]).await[..] else {
        panic!("two answers")
    };
    assert_eq!(data(found), ["10.96.0.7"]);
    assert_eq!(denied.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(denied.authorities[0].record_type(), RecordType::SOA);
}

#[tokio::test]
async fn names_outside_go_to_the_nodes_resolvers_and_aliases_bring_their_target() {
    let upstream = upstream().await;
    // The first is the server itself, which would go round in circles.
    let resolvers = [IpAddr::from([127, 0, 0, 2]), upstream.ip()];
    let server = serve(view(), &resolvers, upstream.port()).await;

    let asked = question("www.example.org.", RecordType::A)
        .to_vec()
        .unwrap();
    let answer = over_udp(server, &asked).await;
    assert_eq!(answer.metadata.id, 4711);
    assert_eq!(data(&answer), ["host.example.org.", "192.0.2.80"]);

    let asked = question("web.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let answer = over_udp(server, &asked).await;
    assert_eq!(
        data(&answer),
        ["www.example.org.", "host.example.org.", "192.0.2.80"]
    );

    let asked = question("nowhere.example.org.", RecordType::A)
        .to_vec()
        .unwrap();
    assert_eq!(
        over_udp(server, &asked).await.metadata.response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn without_a_resolver_or_a_complete_view_the_server_says_that_it_failed() {
    let server = serve(
        View {
            synced: false,
            ..View::default()
        },
        &[],
        53,
    )
    .await;
    for name in ["example.org.", "backend.shop.svc.cluster.local."] {
        let asked = question(name, RecordType::A).to_vec().unwrap();
        assert_eq!(
            over_udp(server, &asked).await.metadata.response_code,
            ResponseCode::ServFail,
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_udp_is_cut_and_whole_over_tcp() {
    let mut view = view();
    let slice = Slice {
        service: "db".into(),
        ports: Vec::new(),
        endpoints: (1..=200)
            .map(|n| endpoint(&format!("10.244.9.{n}"), true, None))
            .collect(),
        ..Slice::default()
    };
    view.slices
        .insert(ObjectKey::new("shop", "db-1"), Arc::new(slice));
    let server = serve(view, &[], 53).await;

    let mut asked = question("db.shop.svc.cluster.local.", RecordType::A);
    let plain = over_udp(server, &asked.to_vec().unwrap()).await;
    assert!(plain.metadata.truncation);
    assert!(
        (15..=30).contains(&plain.answers.len()),
        "{} records in 512 bytes",
        plain.answers.len()
    );

    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.edns = Some(edns);
    let larger = over_udp(server, &asked.to_vec().unwrap()).await;
    assert!(larger.metadata.truncation && larger.edns.is_some());
    assert!(
        (45..=80).contains(&larger.answers.len()),
        "{} records in 1232 bytes",
        larger.answers.len()
    );

    let whole = &over_tcp(server, &[asked]).await[0];
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 200);
}

#[tokio::test]
async fn what_is_no_question_gets_an_error_or_nothing() {
    let server = serve(view(), &[], 53).await;
    let mut update = question("cluster.local.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(
        over_udp(server, &update.to_vec().unwrap())
            .await
            .metadata
            .response_code,
        ResponseCode::NotImp
    );
    let mut bytes = question("backend.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    bytes.truncate(20);
    assert_eq!(
        over_udp(server, &bytes).await.metadata.response_code,
        ResponseCode::FormErr
    );

    // A response gets no response; the question behind it shows that the server still runs.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let mut response = question("backend.shop.svc.cluster.local.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    response.metadata.id = 1;
    socket.send(&response.to_vec().unwrap()).await.unwrap();
    socket.send(b"short").await.unwrap();
    let asked = question("backend.shop.svc.cluster.local.", RecordType::A);
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().metadata.id,
        4711
    );
}

#[tokio::test]
async fn a_question_right_after_the_start_waits_for_the_view() {
    let (server, cluster) = serve_cluster(View::default(), &[], 53).await;
    let asked = question("backend.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    let learns = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.update(|there| {
            *there = view();
            Vec::new()
        });
    });
    assert_eq!(data(&over_udp(server, &asked).await), ["10.96.0.7"]);
    learns.await.unwrap();
}
