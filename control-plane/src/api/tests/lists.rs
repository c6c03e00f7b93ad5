//! List, watch and tables.

use super::*;

#[tokio::test]
async fn lists_select_and_come_in_consistent_pages() {
    let f = Fixture::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        f.call("POST", MAPS, map(name)).await;
    }
    let names = |answer: &Answer| -> Vec<String> {
        answer.body["items"]
            .as_array()
            .expect("items")
            .iter()
            .map(|i| i["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(
        names(&f.get(&format!("{MAPS}?labelSelector=app+in+(b,c)")).await),
        ["b", "c"]
    );
    assert_eq!(
        names(
            &f.get(&format!("{MAPS}?fieldSelector=metadata.name!=a"))
                .await
        ),
        ["b", "c", "d", "e"]
    );
    let unknown = f.get(&format!("{MAPS}?fieldSelector=spec.x=1")).await;
    assert_eq!(
        (unknown.code, unknown.message()),
        (400, "field label not supported: spec.x")
    );

    let first = f.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    // What happens between pages is not in them.
    f.call("DELETE", &format!("{MAPS}/d"), Value::Null).await;
    let next = first.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let second = f.get(&format!("{MAPS}?limit=2&continue={next}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(
        second.body["metadata"]["resourceVersion"],
        first.body["metadata"]["resourceVersion"]
    );
    let next = second.body["metadata"]["continue"]
        .as_str()
        .expect("a token");
    let third = f.get(&format!("{MAPS}?limit=2&continue={next}")).await;
    assert_eq!(names(&third), ["e"]);
    assert!(third.body["metadata"].get("continue").is_none());
    let future = f.get(&format!("{MAPS}?resourceVersion=999999")).await;
    assert_eq!(future.code, 504);
    assert!(
        future
            .message()
            .starts_with("Too large resource version: 999999"),
        "{}",
        future.message()
    );
}

#[tokio::test]
async fn a_watch_tells_what_a_selector_sees() {
    let f = Fixture::new().await;
    let created = f.call("POST", MAPS, map("a")).await.body;
    let version = created["metadata"]["resourceVersion"]
        .as_str()
        .expect("a version")
        .to_owned();
    for labels in [
        json!({"app": "a", "x": "1"}),
        json!({"app": "z"}),
        json!({"app": "a"}),
    ] {
        let mut object = created.clone();
        object["metadata"]["labels"] = labels;
        object["metadata"]["resourceVersion"] = json!("");
        assert_eq!(f.call("PUT", &format!("{MAPS}/a"), object).await.code, 200);
    }
    f.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    let events = f
        .events(
            &format!("{MAPS}?watch=1&labelSelector=app%3Da&resourceVersion={version}"),
            4,
        )
        .await;
    let types: Vec<_> = events
        .iter()
        .map(|e| e["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(types, ["MODIFIED", "DELETED", "ADDED", "DELETED"]);
    assert_eq!(events[1]["object"]["metadata"]["labels"]["x"], "1");
}

#[tokio::test]
async fn a_watch_list_ends_its_first_part_with_a_bookmark() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    let uri = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let events = f.events(&uri, 2).await;
    assert_eq!(events[0]["type"], "ADDED");
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        f.events(
            &format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1"),
            9
        )
        .await
        .len(),
        1
    );
}

/// Clients from before `?watch` ask by path.
#[tokio::test]
async fn the_old_paths_watch_too() {
    let f = Fixture::new().await;
    for name in ["a", "b"] {
        assert_eq!(f.call("POST", MAPS, map(name)).await.code, 201);
    }
    let old = "/api/v1/watch/namespaces/default/configmaps";
    let end = "resourceVersion=0&timeoutSeconds=1";
    let both = f.events(&format!("{old}?{end}"), 9).await;
    assert_eq!(both.len(), 2, "{both:?}");
    let one = f.events(&format!("{old}/b?{end}"), 9).await;
    assert_eq!(one.len(), 1, "{one:?}");
    assert_eq!(one[0]["object"]["metadata"]["name"], "b");
    assert_eq!(f.call("POST", old, map("c")).await.code, 405);
}

#[tokio::test]
async fn tables_have_columns_and_rows() {
    let f = Fixture::new().await;
    f.call("POST", MAPS, map("a")).await;
    for version in ["v1", "v1beta1"] {
        let accept =
            format!("application/json;as=Table;v={version};g=meta.k8s.io,application/json");
        let request = Request::builder().uri(MAPS).header(header::ACCEPT, accept);
        let response = f.send(admin(), request, Body::empty()).await;
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let table: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(table["kind"], "Table");
        assert_eq!(table["apiVersion"], format!("meta.k8s.io/{version}"));
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"][0], "a");
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
}
