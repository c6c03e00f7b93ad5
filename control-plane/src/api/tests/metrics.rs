//! What `/metrics` says, in upstream's words.

use super::*;

#[tokio::test]
async fn requests_and_objects_are_counted_under_upstreams_names() {
    let f = Fixture::new().await;
    for name in ["a", "b"] {
        assert_eq!(f.call("POST", MAPS, map(name)).await.code, 201);
    }
    f.get(MAPS).await;
    f.get(&format!("{PODS}/p/log")).await;
    f.get("/apis/made-up.example/v1/things").await;
    let text = f.get("/metrics").await.body;
    let text = text.as_str().expect("text");
    for line in [
        "apiserver_request_total{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"resource\",code=\"201\"} 2",
        "apiserver_request_total{verb=\"LIST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"namespace\",code=\"200\"} 1",
        "apiserver_request_total{verb=\"GET\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"log\",scope=\"resource\",code=\"404\"} 1",
        "apiserver_request_duration_seconds_count{verb=\"POST\",group=\"\",version=\"v1\",resource=\"configmaps\",subresource=\"\",scope=\"resource\"} 2",
        "apiserver_storage_objects{resource=\"configmaps\"} 2",
        "apiserver_storage_objects{resource=\"deployments.apps\"} 0",
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0",
        "# TYPE process_resident_memory_bytes gauge",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} in {text}");
    }
    assert!(!text.contains("things"), "{text}");
}
