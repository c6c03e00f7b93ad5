//! The cluster's authority, from the files to a TLS connection.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::csr::{
    KUBELET_CLIENT_SIGNER, KUBELET_SERVING_SIGNER, Names, Refusal, Reserved, SigningRequest,
    approve, sign_csr,
};
use super::pki::{Pki, PkiConfig, PkiError};
use super::*;

fn config(dir: &Path) -> PkiConfig {
    PkiConfig {
        data_dir: dir.to_owned(),
        advertise: [192, 0, 2, 1].into(),
        port: 6443,
        service_ip: [10, 96, 0, 1].into(),
        cluster_domain: "cluster.local".to_owned(),
        hostname: "Box".to_owned(),
    }
}

fn files(dir: &Path) -> Vec<(String, u32, String)> {
    let mut files = Vec::new();
    for dir in [dir.to_owned(), dir.join("pki")] {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_file() {
                let name = entry.file_name().into_string().unwrap();
                let text = std::fs::read_to_string(entry.path()).unwrap();
                files.push((name, metadata.permissions().mode() & 0o777, text));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_first_start_makes_what_later_ones_adopt() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    Pki::open(&config(dir.path()), now).unwrap();
    let first = files(dir.path());
    let names: Vec<_> = first
        .iter()
        .map(|(name, mode, _)| (name.as_str(), *mode))
        .collect();
    assert_eq!(
        names,
        [
            ("admin.kubeconfig", 0o600),
            ("apiserver-kubelet-client.crt", 0o644),
            ("apiserver-kubelet-client.key", 0o600),
            ("apiserver.crt", 0o644),
            ("apiserver.key", 0o600),
            ("ca.crt", 0o644),
            ("ca.key", 0o600),
            ("join-token", 0o600),
        ]
    );
    Pki::open(&config(dir.path()), now).unwrap();
    assert_eq!(files(dir.path()), first);
}

#[test]
fn only_what_no_longer_holds_is_issued_anew() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let changed = |config: &PkiConfig, now| {
        let before = files(dir.path());
        Pki::open(config, now).unwrap();
        let changed = files(dir.path())
            .into_iter()
            .filter(|file| !before.contains(file));
        changed.map(|(name, ..)| name).collect::<Vec<_>>()
    };
    Pki::open(&config(dir.path()), now).unwrap();

    let elsewhere = PkiConfig {
        advertise: [192, 0, 2, 9].into(),
        ..config(dir.path())
    };
    assert_eq!(
        changed(&elsewhere, now),
        ["admin.kubeconfig", "apiserver.crt", "apiserver.key"]
    );

    let late = now + Duration::from_hours(310 * 24);
    let all = [
        "admin.kubeconfig",
        "apiserver-kubelet-client.crt",
        "apiserver-kubelet-client.key",
        "apiserver.crt",
        "apiserver.key",
    ];
    assert_eq!(changed(&elsewhere, late), all);

    // A crash between the CA's two files.
    std::fs::remove_file(dir.path().join("pki/ca.crt")).unwrap();
    assert_eq!(changed(&elsewhere, late)[..5], all);
}

#[test]
fn a_damaged_authority_is_refused_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    Pki::open(&config(dir.path()), now).unwrap();
    let key = dir.path().join("pki/ca.key");
    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(
        Pki::open(&config(dir.path()), now),
        Err(PkiError::Unusable { .. })
    ));
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(
        Pki::open(&config(dir.path()), now),
        Err(PkiError::NoKey { .. })
    ));
}

#[test]
fn tokens_are_checked_whole() {
    let token: JoinToken = "abcdef.0123456789abcdef".parse().unwrap();
    for bad in [
        "",
        "abcdef",
        "abcdef.",
        "ABCDEF.0123456789abcdef",
        "abcdef.0123456789abcde",
        "abcdef.0123456789abcdeff",
    ] {
        assert_eq!(bad.parse::<JoinToken>().unwrap_err(), NotAToken);
    }
    assert!(!format!("{token:?}").contains("0123456789abcdef"));
    let authenticator = Authenticator::new(token);
    let ask = |header| authenticator.authenticate(None, header);
    let user = ask(Some("Bearer abcdef.0123456789abcdef")).unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert!(user.is_in(BOOTSTRAPPERS) && user.is_in(AUTHENTICATED));
    assert_eq!(
        ask(Some("Bearer abcdef.0123456789abcdeX")),
        Err(Unauthorized)
    );
    assert_eq!(ask(Some("Basic dXNlcjpwdw==")), Ok(User::anonymous()));
    assert_eq!(ask(None), Ok(User::anonymous()));
}

fn csr(common_name: &str, organizations: &[&str], names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for organization in organizations {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *organization);
    }
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

#[test]
fn a_node_gets_the_certificates_that_are_its_own() {
    let client = ["digital signature".to_owned(), "client auth".to_owned()];
    let server = ["digital signature".to_owned(), "server auth".to_owned()];
    let node = User::authenticated("system:node:w1", [NODES.to_owned()]);
    let joining = User::authenticated("system:bootstrap:abcdef", [BOOTSTRAPPERS.to_owned()]);
    let names = Names {
        own: &["192.0.2.7".to_owned()],
        others: &[],
        reserved: &Reserved::default(),
    };
    let ask = |pem: &str, serving: bool, user: &User| {
        let request = SigningRequest {
            pem,
            signer: if serving {
                KUBELET_SERVING_SIGNER
            } else {
                KUBELET_CLIENT_SIGNER
            },
            usages: if serving { &server } else { &client },
            expiration_seconds: None,
        };
        approve(&request, user, &names)
    };
    let own = csr("system:node:w1", &[NODES], &[]);
    let serving = csr("system:node:w1", &[NODES], &["w1", "192.0.2.7"]);
    assert!(ask(&own, false, &node).is_ok());
    assert!(ask(&own, false, &joining).is_ok());
    assert!(ask(&serving, true, &node).is_ok());
    assert!(matches!(
        ask(&serving, true, &joining),
        Err(Refusal::NotTheirs { .. })
    ));
    assert!(matches!(
        ask(&serving, false, &node),
        Err(Refusal::NamesNotAllowed)
    ));
    assert!(matches!(ask(&own, true, &node), Err(Refusal::NoNames)));
    let other = csr("system:node:w2", &[NODES], &[]);
    assert!(matches!(
        ask(&other, false, &node),
        Err(Refusal::NotTheirs { .. })
    ));
    let greedy = csr("system:node:w1", &[MASTERS], &[]);
    assert!(matches!(
        ask(&greedy, false, &node),
        Err(Refusal::Organization(_))
    ));
    let admin = csr("admin", &[NODES], &[]);
    assert!(matches!(
        ask(&admin, false, &joining),
        Err(Refusal::CommonName(_))
    ));
    let foreign = csr("system:node:w1", &[NODES], &["kubernetes.default.svc"]);
    assert!(matches!(
        ask(&foreign, true, &node),
        Err(Refusal::ForeignAddress(_))
    ));
    assert!(matches!(
        ask("nonsense", false, &node),
        Err(Refusal::Malformed(_))
    ));
}

/// A node writes its own addresses: it must not get a certificate for whatever it writes there.
#[test]
fn a_node_gets_no_certificate_for_what_is_another_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut pki = config(dir.path());
    pki.hostname = "Master-1".into();
    pki.advertise = "192.0.2.1".parse().unwrap();
    let reserved = pki.reserved("10.96.0.0/12".parse().unwrap());
    let others = ["w2".to_owned(), "192.0.2.8".to_owned()];
    let ask = |node: &str, name: &str, same_machine: bool| {
        let own = [name.to_owned()];
        let names = Names {
            own: &own,
            others: &others,
            reserved: &reserved,
        };
        let user = format!("system:node:{node}");
        let request = SigningRequest {
            pem: &csr(&user, &[NODES], &[name]),
            signer: KUBELET_SERVING_SIGNER,
            usages: &["digital signature".to_owned(), "server auth".to_owned()],
            expiration_seconds: None,
        };
        let mut user = User::authenticated(user, [NODES.to_owned()]);
        user.same_machine = same_machine;
        approve(&request, &user, &names)
    };
    assert!(ask("w1", "192.0.2.7", false).is_ok());
    for reserved in [
        "10.96.0.1",
        "10.111.4.4",
        "::ffff:10.96.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "0.0.0.0",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "Kubernetes.Default.SVC",
        "web.default.svc",
        "kubernetes.default.svc.cluster.local",
        "*.example.com",
    ] {
        for (node, same_machine) in [("w1", false), ("w1", true), (reserved, true)] {
            assert!(
                matches!(ask(node, reserved, same_machine), Err(Refusal::Reserved(_))),
                "{node} {reserved}"
            );
        }
    }
    for taken in others.iter() {
        assert!(matches!(ask("w1", taken, true), Err(Refusal::Taken(_))));
    }
    // A node beside the control plane has the machine's name and address.
    for hosts in ["192.0.2.1", "master-1"] {
        assert!(matches!(ask("w1", hosts, false), Err(Refusal::Reserved(_))));
        assert!(ask("w1", hosts, true).is_ok());
    }
}

#[tokio::test]
async fn a_signed_request_is_an_identity_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(&config(dir.path()), SystemTime::now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, NODES);
    params
        .distinguished_name
        .push(DnType::CommonName, "system:node:w1");
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = SigningRequest {
        pem: &pem,
        signer: KUBELET_CLIENT_SIGNER,
        usages: &[
            "digital signature".to_owned(),
            "key encipherment".to_owned(),
            "client auth".to_owned(),
        ],
        expiration_seconds: Some(3600),
    };
    let certificate = sign_csr(&pki.ca, &request, SystemTime::now()).unwrap();

    let user = handshake(&pki, Some((&certificate, &key.serialize_pem())))
        .await
        .unwrap();
    assert_eq!(user.name, "system:node:w1");
    assert_eq!(node_name(&user), Some("w1"));
    assert_eq!(handshake(&pki, None).await.unwrap(), User::anonymous());
    let kubelet_client = &pki.kubelet_client;
    let user = handshake(
        &pki,
        Some((&kubelet_client.certificate, &kubelet_client.key)),
    )
    .await
    .unwrap();
    assert!(user.is_in(MASTERS));

    let other = tempfile::tempdir().unwrap();
    let stranger = Pki::open(&config(other.path()), SystemTime::now())
        .unwrap()
        .kubelet_client;
    assert!(
        handshake(&pki, Some((&stranger.certificate, &stranger.key)))
            .await
            .is_err()
    );
}

/// Who the server sees when a client with this certificate and key connects.
async fn handshake(pki: &Pki, client: Option<(&str, &str)>) -> std::io::Result<User> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pki.ca.certificate().as_bytes()).unwrap())
        .unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let client = match client {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let (near, far) = tokio::io::duplex(1 << 16);
    let acceptor = tokio_rustls::TlsAcceptor::from(
        tls::server_config(&pki.serving, pki.ca.certificate()).unwrap(),
    );
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("kubernetes.default.svc.cluster.local").unwrap();
    let (server, _client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let server = server?;
    let peer = server
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let user = Authenticator::new(pki.join_token.clone()).authenticate(peer, None);
    Ok(user.unwrap())
}

#[test]
fn everybody_sees_health_and_members_see_discovery() {
    let get = |path| Attributes {
        verb: "get",
        path,
        ..Default::default()
    };
    let anonymous = User::anonymous();
    let member = User::authenticated("somebody", []);
    let open: BTreeSet<&str> = ["/healthz", "/livez", "/readyz", "/version"].into();
    for path in [
        "/healthz",
        "/livez",
        "/readyz",
        "/version",
        "/api",
        "/apis/apps/v1",
        "/metrics",
        "/openapi/v3",
    ] {
        assert_eq!(
            authorize(&anonymous, &get(path)).is_allowed(),
            open.contains(path),
            "{path}"
        );
        assert_eq!(
            authorize(&member, &get(path)).is_allowed(),
            path != "/metrics",
            "{path}"
        );
    }
    let pods = Attributes {
        verb: "list",
        resource: "pods",
        namespace: "default",
        ..Default::default()
    };
    assert_eq!(
        authorize(&member, &pods),
        Decision::Deny(
            "User \"somebody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"".to_owned()
        )
    );
}
