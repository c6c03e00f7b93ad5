//! The node against an API server that knows just what is asked of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::announce::Pulse;
use crate::events::Events;
use crate::housekeeping::signal::BySignal;

use super::credentials::NodeClient;
use super::follow::Follower;
use super::join::{Join, JoinError, Joined, join};
use super::reserve::{KeptBack, Reserved};
use super::rotation::{ServingCertificate, keep_serving_certificate};
use super::status::{Health, Identity, Part};
use super::upkeep::Upkeep;

const TOKEN: &str = "abcdef.0123456789abcdef";

/// A cluster: a CA, and objects by path.
struct Fake {
    ca: Issuer<'static, KeyPair>,
    ca_pem: String,
    objects: Mutex<BTreeMap<String, Value>>,
    /// Method and path of every write.
    writes: Mutex<Vec<String>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Arc::new(Fake {
            ca: Issuer::new(params, key),
            ca_pem,
            objects: Mutex::default(),
            writes: Mutex::default(),
        })
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(path).cloned()
    }

    fn sign(&self, request: &Value) -> String {
        let pem = base64::engine::general_purpose::STANDARD
            .decode(request["spec"]["request"].as_str().unwrap())
            .unwrap();
        let params =
            CertificateSigningRequestParams::from_pem(std::str::from_utf8(&pem).unwrap()).unwrap();
        params.signed_by(&self.ca).unwrap().pem()
    }

    /// What the API server does with one request.
    fn handle(&self, method: &Method, path: &str, body: Value) -> Response {
        let mut objects = self.objects.lock().unwrap();
        if method != Method::GET {
            self.writes.lock().unwrap().push(format!("{method} {path}"));
        }
        let answer = match method.as_str() {
            "GET" => objects.get(path).cloned(),
            "POST" => {
                let mut object = body;
                if path.ends_with("certificatesigningrequests") {
                    let pem = base64::engine::general_purpose::STANDARD.encode(self.sign(&object));
                    object["status"] = json!({"certificate": pem});
                }
                object["metadata"]["uid"] = json!("uid-1");
                objects.insert(
                    format!("{path}/{}", object["metadata"]["name"].as_str().unwrap()),
                    object.clone(),
                );
                Some(object)
            }
            "PUT" => objects.insert(path.to_owned(), body.clone()).map(|_| body),
            // All that is patched here are whole maps and lists, for which every kind of patch does the same.
            "PATCH" => objects
                .get_mut(path.trim_end_matches("/status"))
                .map(|object| {
                    merge(object, body);
                    object.clone()
                }),
            _ => None,
        };
        match answer {
            Some(object) => axum::Json(object).into_response(),
            None => refusal(StatusCode::NOT_FOUND, "NotFound"),
        }
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code.as_u16(), "reason": reason, "message": reason,
    });
    (code, axum::Json(status)).into_response()
}

async fn api(
    State(fake): State<Arc<Fake>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Response {
    let bearer = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    if bearer.is_some_and(|value| value != format!("Bearer {TOKEN}")) {
        return refusal(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    fake.handle(
        &method,
        uri.path(),
        serde_json::from_str(&body).unwrap_or_default(),
    )
}

/// Serves the fake over TLS with a certificate of its CA.
async fn serve(fake: Arc<Fake>) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = params.signed_by(&key, &fake.ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TowerToHyperService::new(Router::new().fallback(api).with_state(fake));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

fn request(address: SocketAddr, ca_pem: &str, dir: &Path) -> Join {
    let ca_file = dir.join("ca.crt");
    std::fs::write(&ca_file, ca_pem).unwrap();
    Join {
        url: format!("https://{address}"),
        token: TOKEN.into(),
        ca_file,
        node_name: "worker-1".into(),
        root_dir: dir.join("root"),
    }
}

#[tokio::test]
async fn joining_writes_a_private_kubeconfig_once() {
    let fake = Fake::new();
    let address = serve(fake.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let request = request(address, &fake.ca_pem, dir.path());

    let Joined::Now { kubeconfig } = join(&request).await.unwrap() else {
        panic!("it joined before")
    };
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&kubeconfig).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fake.writes.lock().unwrap().len(), 1);

    let again = join(&request).await.unwrap();
    assert!(matches!(again, Joined::Already { .. }), "{again:?}");
    assert_eq!(fake.writes.lock().unwrap().len(), 1);

    let other = Join {
        node_name: "worker-2".into(),
        ..request.clone()
    };
    let error = join(&other).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("as system:node:worker-1 already"),
        "{error}"
    );

    // The kubeconfig works: with the client that follows it, and after it was written anew.
    let node_client = NodeClient::load(&kubeconfig).await.unwrap();
    let client = node_client.client();
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client);
    assert!(nodes.get_opt("worker-1").await.unwrap().is_none());
    node_client.reload().await.unwrap();
    assert!(nodes.get_opt("worker-1").await.unwrap().is_none());
}

#[tokio::test]
async fn what_keeps_a_machine_from_joining_is_said_in_one_sentence() {
    let fake = Fake::new();
    let address = serve(fake.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let good = request(address, &fake.ca_pem, dir.path());

    let error = join(&Join {
        token: "wrong".into(),
        ..good.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(error, JoinError::Token), "{error:?}");

    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("https://{unused}");
    let error = join(&Join {
        url: url.clone(),
        ..good.clone()
    })
    .await
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot reach the API server at {url}: ")),
        "{error}"
    );
    assert!(error.to_string().contains("refused"), "{error}");

    let stranger = dir.path().join("stranger.crt");
    std::fs::write(&stranger, &Fake::new().ca_pem).unwrap();
    let error = join(&Join {
        ca_file: stranger,
        ..good.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(error, JoinError::CaMismatch { .. }), "{error:?}");

    let missing = dir.path().join("missing.crt");
    let error = join(&Join {
        ca_file: missing,
        ..good.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(error, JoinError::ReadCa { .. }), "{error:?}");
    let empty = dir.path().join("empty.crt");
    std::fs::write(&empty, "nothing").unwrap();
    let error = join(&Join {
        ca_file: empty,
        ..good.clone()
    })
    .await
    .unwrap_err();
    assert!(matches!(error, JoinError::NoCa { .. }), "{error:?}");

    for url in ["192.0.2.1:6443", "http://192.0.2.1:6443", ""] {
        let error = join(&Join {
            url: url.into(),
            ..good.clone()
        })
        .await
        .unwrap_err();
        assert!(matches!(error, JoinError::Url { .. }), "{error:?}");
    }
    for name in ["", "Worker", "a_b", "-a", "a..b"] {
        let error = join(&Join {
            node_name: name.into(),
            ..good.clone()
        })
        .await
        .unwrap_err();
        assert!(matches!(error, JoinError::NodeName { .. }), "{error:?}");
    }
    assert!(!good.root_dir.exists(), "nothing is left behind");
}

/// A client whose transport is the fake itself.
fn client(fake: Arc<Fake>) -> kube::Client {
    let router = Router::new().fallback(api).with_state(fake);
    let service = tower::ServiceBuilder::new()
        .map_request(|request: http::Request<kube::client::Body>| {
            request.map(axum::body::Body::new)
        })
        .service(router);
    kube::Client::new(service, "default")
}

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it did not happen within five seconds");
}

#[tokio::test]
async fn a_node_is_registered_reported_and_registered_again_when_it_is_gone() {
    let fake = Fake::new();
    let (health, receiver) = watch::channel(Health::default());
    let (fit, mut fit_seen) = watch::channel(false);
    let (pulse, pulse_seen) = watch::channel(Pulse::default());
    let upkeep = Upkeep {
        client: client(fake.clone()),
        identity: Identity {
            name: "worker-1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            labels: BTreeMap::from([("disk".into(), "ssd".into())]),
            kubelet_port: 10250,
        },
        root_dir: "/".into(),
        kept_back: KeptBack {
            reserved: Reserved::default(),
            eviction: BySignal::default(),
            max_pods: 110,
        },
        health: receiver,
        pulse: pulse_seen,
        fit,
        events: Events::start(client(fake.clone()), "kubelet", "worker-1".into()),
    };
    let running = tokio::spawn(upkeep.run());
    let path = "/api/v1/nodes/worker-1";
    let ready = |node: &Value| {
        node["status"]["conditions"][0]["status"]
            .as_str()
            .map(str::to_owned)
    };

    let node = until(|| fake.object(path)).await;
    assert_eq!(node["metadata"]["labels"]["disk"], "ssd");
    assert_eq!(ready(&node).as_deref(), Some("False"));

    health.send_modify(|health| {
        health.runtime = Part::Up;
        health.network = Part::Up;
    });
    until(|| {
        fake.object(path)
            .filter(|node| ready(node).as_deref() == Some("True"))
    })
    .await;

    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/worker-1";
    let lease = until(|| fake.object(lease)).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-1");

    fit_seen.wait_for(|fit| *fit).await.unwrap();
    let networks = vec!["192.0.2.0/24".parse().unwrap()];
    pulse.send_replace(Pulse {
        fast: true,
        networks,
    });
    let path_of_lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/worker-1";
    let announces = |lease: &Value| {
        let annotations = &lease["metadata"]["annotations"];
        annotations["kernelet.io/announces"] == "192.0.2.0/24"
    };
    let first = until(|| fake.object(path_of_lease).filter(announces)).await;
    // Long before the slow pace would ask for it.
    let again = |lease: &Value| lease["spec"]["renewTime"] != first["spec"]["renewTime"];
    until(|| fake.object(path_of_lease).filter(again)).await;
    pulse.send_replace(Pulse::default());
    until(|| fake.object(path_of_lease).filter(|lease| !announces(lease))).await;

    fake.objects.lock().unwrap().remove(path);
    health.send_modify(|health| health.runtime_version = "containerd://2".into());
    let node = until(|| fake.object(path)).await;
    assert_eq!(
        node["status"]["nodeInfo"]["containerRuntimeVersion"],
        "containerd://2"
    );
    running.abort();
}

#[tokio::test]
async fn a_serving_certificate_is_asked_for_once_and_kept() {
    let fake = Fake::new();
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let serving = Arc::new(ServingCertificate::default());
        let addresses = vec!["192.0.2.1".parse().unwrap()];
        let (client, root, kept) = (client(fake.clone()), dir.path().to_owned(), serving.clone());
        let running = tokio::spawn(async move {
            keep_serving_certificate(client, "worker-1".into(), addresses, &root, kept).await;
        });
        until(|| serving.is_ready().then_some(())).await;
        running.abort();
    }
    assert_eq!(fake.writes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn files_that_others_renew_are_used_when_they_are_there() {
    let fake = Fake::new();
    let thing = json!({"kind": "Thing"});
    let objects = [("/thing".to_owned(), thing.clone())];
    fake.objects.lock().unwrap().extend(objects);
    let address = serve(fake.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let put = |text: &str| {
        let (new, path) = (dir.path().join("new"), dir.path().join("ca.crt"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    };
    put(&Fake::new().ca_pem);
    let path = dir.path().join("kubeconfig");
    // Relative to the kubeconfig, as it may be.
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: \"https://{address}\", certificate-authority: ca.crt}}}}]\n\
         users: [{{name: a, user: {{token: {TOKEN}}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let node_client = NodeClient::load(&path).await.unwrap();
    let client = node_client.client();
    let ask = async || {
        let request = http::Request::get("/thing").body(Vec::new()).unwrap();
        client.request::<Value>(request).await
    };
    let mut follower = Follower::new(node_client);
    assert!(follower.pass().await.unwrap());
    assert!(!follower.pass().await.unwrap(), "nothing is new");
    assert!(ask().await.is_err(), "of another cluster");

    std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
    for _ in 0..2 {
        assert!(follower.pass().await.is_err(), "it is tried again");
    }
    put(&fake.ca_pem);
    assert!(follower.pass().await.unwrap());
    assert_eq!(ask().await.unwrap(), thing);
}
