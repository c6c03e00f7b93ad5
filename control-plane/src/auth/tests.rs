//! The cluster's authority, from the files to a TLS connection.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::certificate::CertifiedKeyPem;
use super::csr::{KUBELET_CLIENT_SIGNER, SigningRequest, sign_csr};
use super::pki::{Pki, PkiConfig, PkiError};
use super::rbac::defaults;
use super::*;

const SERVICE: [u8; 4] = [10, 96, 0, 1];

fn config(dir: &Path) -> PkiConfig {
    PkiConfig {
        data_dir: dir.to_owned(),
        advertise: [192, 0, 2, 1].into(),
        port: 6443,
        cluster_domain: "cluster.local".to_owned(),
        hostname: "Box".to_owned(),
    }
}

/// The keys, and what the server shows with the service `kubernetes` at that address.
fn open(config: &PkiConfig, service: [u8; 4], now: SystemTime) -> (Pki, CertifiedKeyPem) {
    let pki = Pki::open(config, now).unwrap();
    let serving = pki.serving(config, &[service.into()].into(), now).unwrap();
    (pki, serving)
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
    open(&config(dir.path()), SERVICE, now);
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
            ("sa.key", 0o600),
        ]
    );
    open(&config(dir.path()), SERVICE, now);
    assert_eq!(files(dir.path()), first);
}

#[test]
fn only_what_no_longer_holds_is_issued_anew() {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let changed = |config: &PkiConfig, service, now| {
        let before = files(dir.path());
        open(config, service, now);
        let changed = files(dir.path())
            .into_iter()
            .filter(|file| !before.contains(file));
        changed.map(|(name, ..)| name).collect::<Vec<_>>()
    };
    open(&config(dir.path()), SERVICE, now);
    let of_service = changed(&config(dir.path()), [10, 200, 0, 1], now);
    assert_eq!(of_service, ["apiserver.crt", "apiserver.key"]);

    let elsewhere = PkiConfig {
        advertise: [192, 0, 2, 9].into(),
        ..config(dir.path())
    };
    assert_eq!(
        changed(&elsewhere, SERVICE, now),
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
    assert_eq!(changed(&elsewhere, SERVICE, late), all);

    // A crash between the CA's two files.
    std::fs::remove_file(dir.path().join("pki/ca.crt")).unwrap();
    assert_eq!(changed(&elsewhere, SERVICE, late)[..5], all);
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
    let dir = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::new(token, authority(dir.path()));
    let ask =
        |header: Option<&str>| match authenticator.authenticate(None, header.and_then(bearer), 0) {
            Ok(Credential::User(user)) => Ok(user),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
    let user = ask(Some("Bearer abcdef.0123456789abcdef")).unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert!(user.is_in(BOOTSTRAPPERS) && user.is_in(AUTHENTICATED));
    assert_eq!(
        ask(Some("Bearer abcdef.0123456789abcdeX")),
        Err(Unauthorized)
    );
    // Another token of that form may be in a Secret.
    let other = authenticator.authenticate(None, Some("abcdef.0123456789abcdee"), 0);
    assert!(matches!(other, Ok(Credential::Bootstrap(_))));
    assert_eq!(ask(Some("Basic dXNlcjpwdw==")), Ok(User::anonymous()));
    assert_eq!(ask(None), Ok(User::anonymous()));
}

#[tokio::test]
async fn a_signed_request_is_an_identity_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, serving) = open(&config(dir.path()), SERVICE, SystemTime::now());
    let handshake = |client| handshake(&pki, &serving, client);
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

    let client_key = key.serialize_pem();
    let user = handshake(Some((&certificate, &client_key))).await.unwrap();
    assert_eq!(user.name, "system:node:w1");
    assert_eq!(node_name(&user), Some("w1"));
    assert_eq!(handshake(None).await.unwrap(), User::anonymous());
    let kubelet_client = &pki.kubelet_client;
    let own = handshake(Some((&kubelet_client.certificate, &kubelet_client.key))).await;
    assert!(own.is_err(), "what agents are shown is nobody here");

    let other = tempfile::tempdir().unwrap();
    let stranger = Pki::open(&config(other.path()), SystemTime::now())
        .unwrap()
        .kubelet_client;
    assert!(
        handshake(Some((&stranger.certificate, &stranger.key)))
            .await
            .is_err()
    );
}

/// Who the server sees when a client with this certificate and key connects.
async fn handshake(
    pki: &Pki,
    serving: &CertifiedKeyPem,
    client: Option<(&str, &str)>,
) -> std::io::Result<User> {
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
    let acceptor =
        tokio_rustls::TlsAcceptor::from(tls::server_config(serving, pki.ca.certificate()).unwrap());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("kubernetes.default.svc.cluster.local").unwrap();
    let (server, _client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let server = server?;
    let peer = server
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let dir = tempfile::tempdir().unwrap();
    let authenticator = Authenticator::new(pki.join_token.clone(), authority(dir.path()));
    let peer = peer.map(of_certificate);
    match authenticator.authenticate(peer, None, 0) {
        Ok(Credential::User(user)) => Ok(user),
        Ok(other) => panic!("{other:?}"),
        Err(unauthorized) => Err(std::io::Error::other(unauthorized)),
    }
}

fn authority(dir: &Path) -> Arc<tokens::Authority> {
    let keys = tokens::Keys::open(dir).unwrap();
    Arc::new(tokens::Authority::new(keys, "https://issuer".to_owned()))
}

fn authorize(user: &User, a: &Attributes<'_>) -> Decision {
    super::authorize(&defaults::policy(), user, a)
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
    assert!(!authorize(&member, &pods).is_allowed());
    assert_eq!(
        refusal(&member, &pods, ""),
        "User \"somebody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
}

#[test]
fn a_service_proxy_may_do_what_system_node_proxier_may() {
    let proxy = User::authenticated(super::KUBE_PROXY, []);
    let may = |verb, group, resource| {
        let attributes = Attributes {
            verb,
            group,
            resource,
            ..Default::default()
        };
        authorize(&proxy, &attributes).is_allowed()
    };
    let slices = ("discovery.k8s.io", "endpointslices");
    for (group, resource) in [("", "services"), ("", "nodes"), slices] {
        for verb in ["list", "watch"] {
            assert!(may(verb, group, resource), "{verb} {resource}");
        }
        for verb in ["create", "update", "patch", "delete"] {
            assert!(!may(verb, group, resource), "{verb} {resource}");
        }
        let get = may("get", group, resource);
        assert_eq!(get, resource == "nodes", "get {resource}");
    }
    assert!(may("create", "", "events") && may("patch", "events.k8s.io", "events"));
    for (group, resource) in [
        ("", "pods"),
        ("", "secrets"),
        ("", "configmaps"),
        ("coordination.k8s.io", "leases"),
        ("certificates.k8s.io", "certificatesigningrequests"),
    ] {
        for verb in ["get", "list", "watch", "create", "update"] {
            assert!(!may(verb, group, resource), "{verb} {resource}");
        }
    }
    let status = Attributes {
        verb: "patch",
        resource: "nodes",
        subresource: "status",
        ..Default::default()
    };
    assert!(!authorize(&proxy, &status).is_allowed());
}
