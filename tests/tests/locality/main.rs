//! Locality with feedback, on real pods: a throttled local backend, and one that refuses.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use frontend_backend::Calls;
use kernelet_tests::Spec;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::{Value, json};

/// How long pods may take to become Ready.
const START: Duration = Duration::from_secs(90);
/// Clients that call at the same time; as many as the sample program has threads.
const CLIENTS: usize = 4;

/// A cluster of two workers with the application of `manifest.yaml`. `None`: skipped.
fn begin(prefix: &str, subnet: u8) -> Option<Scenario> {
    let scenario = Scenario::begin(Spec::scenario(prefix, subnet, 2))?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/locality/manifest.yaml");
    scenario.kubectl(&format!("apply -f {manifest}"));
    eventually("all pods are Ready", START, || {
        let pods = scenario.list("pods");
        let ready = pods.iter().filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
        });
        match ready.count() {
            count if count == pods.len() && count > 0 => Ok(()),
            _ => Err(scenario.kubectl("get pods -o wide")),
        }
    });
    Some(scenario)
}

/// Has the client pod with this name, which is on worker-1, call its service so often from each of its threads.
fn call(scenario: &Scenario, client: &str, count: usize) -> Calls {
    let pod = scenario.get(&format!("pod {client}"));
    let address = pod["status"]["podIP"].as_str().unwrap();
    let url = format!("http://{address}:3000/calls?count={count}");
    let node = scenario.node("worker-1").unwrap();
    let ask = || {
        let response = node.inside(|| minreq::get(&url).with_timeout(120).send());
        let response = response.unwrap().unwrap();
        serde_json::from_slice::<Calls>(response.as_bytes()).unwrap()
    };
    let all: Vec<Calls> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    all.into_iter()
        .reduce(|mut sum, one| {
            sum.answers.extend(one.answers);
            sum.times_us.extend(one.times_us);
            sum.failures += one.failures;
            sum.first_failure = sum.first_failure.or(one.first_failure);
            sum
        })
        .unwrap()
}

/// The part of the answers that came from the client's own node.
fn locality(calls: &Calls) -> f64 {
    let count = |node: Option<&str>| -> u64 {
        let answers = calls.answers.iter();
        let there = answers.filter(|one| node.is_none_or(|node| one.backend.node == node));
        there.map(|one| one.count).sum()
    };
    count(Some("worker-1")) as f64 / count(None) as f64
}

fn p99(calls: &Calls) -> u64 {
    let mut times = calls.times_us.clone();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn a_throttled_local_backend_is_relieved_and_a_comfortable_one_keeps_its_clients() {
    let Some(scenario) = begin("klt", 131) else {
        return;
    };
    // One in a hundred leaves the node: of 6,000 calls 60, give or take 8.
    let calm = call(&scenario, "calm-client", 1500);
    assert_eq!(calm.failures, 0, "{:?}", calm.first_failure);
    let stays = locality(&calm);
    assert!(stays >= 0.985, "{stays} of the calls stayed on the node");

    // The same three backends by two services; the local one has a twentieth of a CPU.
    let even = call(&scenario, "even-client", 100);
    call(&scenario, "busy-client", 200);
    let busy = call(&scenario, "busy-client", 400);
    let shown = scenario.kernelet("worker-1", "service show busy");
    for calls in [&even, &busy] {
        assert_eq!(calls.failures, 0, "{:?}", calls.first_failure);
    }
    let (slowest, even_slowest) = (p99(&busy), p99(&even));
    println!("p99 {slowest} us, of an even spread {even_slowest} us");
    println!(
        "{:.3} stayed on the node, in comfort {stays:.4}",
        locality(&busy)
    );
    assert!(locality(&busy) < 0.3, "{}; {shown}", locality(&busy));
    let feedback = &shown["ports"][0]["feedback"];
    assert!(feedback["share"].as_f64().unwrap() < 0.5, "{shown}");
    let explanation = feedback["explanation"].as_str().unwrap();
    assert!(explanation.contains("stay on the node"), "{explanation}");
}

/// What `service show` tells of the backend in the pod with this name.
fn shown_backend(scenario: &Scenario, service: &str, pod: &str) -> Result<Value, String> {
    let shown = scenario.try_kernelet("worker-1", &format!("service show {service}"))?;
    let backends = shown["ports"][0]["backends"].as_array();
    let mut backends = backends.into_iter().flatten();
    let found = backends.find(|one| one["pod"] == format!("default/{pod}"));
    found.cloned().ok_or_else(|| shown.to_string())
}

/// Answers as a backend in this pod would, on port 8080, until the test ends.
fn begin_to_answer(scenario: &Scenario, pod: &str) {
    let found = scenario.get(&format!("pod {pod}"));
    let uid = found["metadata"]["uid"].as_str().unwrap();
    let node = scenario.node("worker-2").unwrap();
    let listener = node.inside_pod(uid, || TcpListener::bind("0.0.0.0:8080"));
    let listener = listener.unwrap().unwrap();
    let identity = json!({"pod": pod, "node": "worker-2"}).to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{identity}",
        identity.len()
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who goes away in the middle needs no answer.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

#[test]
fn a_backend_that_refuses_is_ejected_and_returns_when_it_answers() {
    let Some(scenario) = begin("kle", 132) else {
        return;
    };
    // A pod of the service that is Ready, and where nobody listens on the port: one call in three fails.
    let mut failures = 0;
    let shown = eventually("service show names the ejected backend", START, || {
        failures += call(&scenario, "refused-client", 25).failures;
        let shown = shown_backend(&scenario, "refused", "refused-3")?;
        match shown["ejection"].is_object() {
            true => Ok(shown),
            false => Err(shown.to_string()),
        }
    });
    assert_eq!(shown["state"], "ejected", "{shown}");
    let reason = shown["ejection"]["reason"].as_str().unwrap();
    assert!(reason.contains("failed"), "{shown}");
    assert!(failures > 0, "it was among those offered");

    // It is tried again after a second, two, four: however fast the calls are, far fewer than a third fail.
    let calls = call(&scenario, "refused-client", 1500);
    let all = (CLIENTS * 1500) as u64;
    let failures = calls.failures;
    assert!(failures * 5 < all, "{failures} of {all} failed");
    let backends: BTreeSet<&str> = calls
        .answers
        .iter()
        .map(|one| one.backend.pod.as_str())
        .collect();
    assert_eq!(backends, BTreeSet::from(["refused-1", "refused-2"]));

    begin_to_answer(&scenario, "refused-3");
    eventually("the backend is offered again", START, || {
        let calls = call(&scenario, "refused-client", 25);
        let shown = shown_backend(&scenario, "refused", "refused-3")?;
        let mut answers = calls.answers.iter();
        match shown["ejection"].is_null() && answers.any(|one| one.backend.pod == "refused-3") {
            true => Ok(()),
            false => Err(shown.to_string()),
        }
    });
    let calls = call(&scenario, "refused-client", 100);
    assert_eq!(calls.failures, 0, "{:?}", calls.first_failure);
}
