use tower::ServiceExt;

use super::super::access::ADMINISTRATORS;
use super::super::access::tests::access;
use super::*;
use crate::node::rotation::ServingCertificate;
use crate::runtime::containerd::Containerd;
use crate::runtime::host::Host;

fn api(root: &std::path::Path) -> KubeletApi {
    let pods = PodTable::default();
    pods.put(PodSummary {
        uid: "u".into(),
        namespace: "default".into(),
        name: "web".into(),
        containers: vec![ContainerSummary {
            name: "main".into(),
            id: "abc".into(),
            state: "CrashLoopBackOff".into(),
            restarts: 1,
            ..ContainerSummary::default()
        }],
        ..PodSummary::default()
    });
    KubeletApi {
        node: "n".into(),
        access: Arc::new(access(Arc::default())),
        pods,
        paths: Paths::new(root.to_owned(), root.join("run"), "kernelet-test".into()),
        runtime: Arc::new(nothing_runs(root)),
        sessions: Sessions::default(),
        rates: Arc::default(),
        configz: Arc::new(serde_json::json!({"maxPods": 110})),
        metrics: Arc::new(|| "# EOF\n".into()),
    }
}

/// A runtime that is not there.
fn nothing_runs(root: &std::path::Path) -> Containerd {
    Containerd::new(&root.join("absent.sock"), Host::probe(), root, root)
}

async fn ask(api: KubeletApi, caller: Option<Caller>, path: &str) -> (StatusCode, String) {
    let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
    let router = router(api).layer(Extension(caller));
    let response = router.oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn member(group: &str) -> Option<Caller> {
    Some(Caller::certified("someone".into(), vec![group.into()]))
}

#[tokio::test]
async fn only_administrators_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    for (path, said) in [
        ("/pods", "\"PodList\""),
        ("/runningpods/", "\"PodList\""),
        ("/configz", "{\"kubeletconfig\":{\"maxPods\":110}}"),
        ("/metrics/probes", "# TYPE prober_probe_total counter"),
    ] {
        let ask = |caller| ask(api(dir.path()), caller, path);
        assert_eq!(ask(None).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(ask(member("system:nodes")).await.0, StatusCode::FORBIDDEN);
        let (status, body) = ask(member(ADMINISTRATORS)).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains(said), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_token_is_whose_the_api_server_says_and_may_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let ask = async |token: &str, path: &str| {
        let request = axum::http::Request::get(path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty());
        let router = router(api(dir.path())).layer(Extension(None::<Caller>));
        let answer = router.oneshot(request.unwrap()).await.unwrap();
        answer.status()
    };
    assert_eq!(ask("good", "/metrics").await, StatusCode::OK);
    assert_eq!(ask("good", "/pods").await, StatusCode::FORBIDDEN);
    assert_eq!(ask("bad", "/metrics").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn logs_are_given_of_this_and_of_the_previous_container() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs/default_web_u/main");
    std::fs::create_dir_all(&logs).unwrap();
    for (attempt, text) in [(0, "before"), (1, "now")] {
        let line = format!("2026-01-01T00:00:01.000000000Z stdout F {text}\n");
        std::fs::write(logs.join(format!("{attempt}.log")), line).unwrap();
    }
    let ask = |path| ask(api(dir.path()), member(ADMINISTRATORS), path);
    assert_eq!(ask("/containerLogs/default/web/main").await.1, "now\n");
    assert_eq!(
        ask("/containerLogs/default/web/main?previous=true").await.1,
        "before\n"
    );
    assert_eq!(
        ask("/containerLogs/default/web/main?tailLines=0").await.1,
        ""
    );
    assert_eq!(
        ask("/containerLogs/default/web/other").await.0,
        StatusCode::NOT_FOUND
    );
    let bad = ask("/containerLogs/default/web/main?sinceTime=yesterday").await;
    assert_eq!(bad.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_silent_caller_is_shown_out() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
    let authority = key.cert.der().clone();
    let tls = tls_config(&[authority], Arc::new(ServingCertificate::default())).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _caller = TcpStream::connect(listener.local_addr().unwrap()).await;
    let (stream, _) = listener.accept().await.unwrap();
    let router = router(api(dir.path()));
    let ended = connection(stream, acceptor, router, Duration::from_millis(50)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
}
