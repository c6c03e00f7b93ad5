//! What the API says of itself is what it does: schemathesis makes requests from our own OpenAPI, right ones and wrong ones. None
//! may be the server's fault or go without an answer.
//!
//! `KERNELET_TEST_SECONDS` says for how long.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use kernelet_tests::alone::ControlPlane;
use kernelet_tests::cluster::target;
use kernelet_tests::command::output;
use kernelet_tests::{host, python};
use serde_json::{Map, Value, json};

/// Enough for a request or two of each operation.
const SECONDS: &str = "45";
/// In seconds; the server itself gives up after as long.
const HANGS: &str = "60";

#[test]
fn no_request_that_the_schema_leads_to_is_the_servers_fault() {
    let Some(schemathesis) = python::find("schemathesis") else {
        let reason = "schemathesis is not installed: run `cargo xtask setup`";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    };
    let directory = target().join("scenarios/described");
    let _ = std::fs::remove_dir_all(&directory);
    let address = Ipv4Addr::new(127, 77, 6, 1);
    let mut server = ControlPlane::start(&directory, address, &[]).unwrap();
    let schema = directory.join("openapi.json");
    host::write(&schema, described(&server).to_string()).unwrap();
    // Whoever may do everything comes furthest.
    let file = |name: &str| directory.join(name).display().to_string();
    credentials(&server, &directory);
    let seconds = std::env::var("KERNELET_TEST_SECONDS").unwrap_or_else(|_| SECONDS.to_owned());
    let mut command = Command::new(schemathesis);
    command
        .current_dir(&directory)
        .args(["run", &file("openapi.json"), "--url", &server.url()])
        .args(["--tls-verify", &file("pki/ca.crt")])
        .args(["--request-cert", &file("admin.crt")])
        .args(["--request-cert-key", &file("admin.key")])
        .args(["--checks", "not_a_server_error", "--request-timeout", HANGS])
        .args(["--phases", "fuzzing", "--max-time", &seconds])
        .args(["--workers", "2", "--suppress-health-check", "all"])
        .args(["--no-shrink", "--no-color", "--warnings", "off"]);
    if seconds == SECONDS {
        // The same requests each time, as far as two workers take turns alike.
        command.args(["--max-examples", "2", "--seed", "1"]);
    }
    let outcome = command.output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success(), "{said}");
    assert!(server.runs(), "the server ended");
    let log = host::read(directory.join("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// The administrator's certificate and key, each in a file.
fn credentials(server: &ControlPlane, directory: &Path) {
    for (field, name) in [
        ("client-certificate-data", "admin.crt"),
        ("client-key-data", "admin.key"),
    ] {
        let path = format!("-o=jsonpath={{.users[0].user.{field}}}");
        let mut view = server.kubectl();
        view.args(["config", "view", "--raw", &path]);
        let encoded = output(&mut view).unwrap();
        let mut decode = Command::new("base64");
        let text = directory.join("encoded");
        host::write(&text, encoded).unwrap();
        let decoded = output(decode.arg("-d").arg(&text)).unwrap();
        host::write(directory.join(name), decoded).unwrap();
    }
}

fn raw(server: &ControlPlane, path: &str) -> Value {
    let text = output(server.kubectl().args(["get", "--raw", path])).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// All documents in one, without what would wait or lead elsewhere, and with names of objects that may be there.
fn described(server: &ControlPlane) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    let index = raw(server, "/openapi/v3");
    for place in index["paths"].as_object().unwrap().keys() {
        let mut document = raw(server, &format!("/openapi/v3/{place}"));
        for (path, item) in document["paths"].as_object_mut().unwrap() {
            let mut item = item.as_object().unwrap().clone();
            item.retain(|_, operation| operation["x-kubernetes-action"] != "connect");
            item.values_mut().for_each(narrow);
            if item.keys().any(|key| key != "parameters") && !path.ends_with("/log") {
                paths.insert(path.clone(), Value::Object(item));
            }
        }
        let own = document["components"]["schemas"].take();
        schemas.extend(own.as_object().unwrap().clone());
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"},
        "paths": paths, "components": {"schemas": schemas},
    })
}

/// Narrows the parameters of a path or of an operation.
fn narrow(item: &mut Value) {
    let parameters = match item {
        Value::Array(parameters) => parameters,
        operation => operation["parameters"].as_array_mut().unwrap(),
    };
    // A watch goes on until it is ended, and a revision that is not there yet is waited for.
    parameters.retain(|one| one["name"] != "watch" && one["name"] != "sendInitialEvents");
    for parameter in parameters {
        let some = match parameter["name"].as_str().unwrap() {
            "namespace" => json!(["default"]),
            "name" => json!(["a", "default", "kubernetes"]),
            "resourceVersion" => json!(["", "0", "1"]),
            _ => continue,
        };
        parameter["schema"]["enum"] = some;
    }
}
