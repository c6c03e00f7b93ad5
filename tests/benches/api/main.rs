//! The API server by itself, over either store, and beside a kube-apiserver where `--peer PATH` names one: requests a second,
//! how long the slowest take, the server's processor time for each, and its memory.

#[path = "../common/mod.rs"]
mod common;
mod load;
mod servers;

use std::path::PathBuf;
use std::time::Duration;

use common::{Report, is_short};
use kube::Client;
use load::Taken;
use servers::{Server, Which};

/// How long memory may settle.
const SETTLE: Duration = Duration::from_secs(5);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut report = Report::new("api");
    let mut all = vec![Which::Embedded, Which::Etcd];
    all.extend(peer().map(Which::Peer));
    for which in &all {
        runtime.block_on(measure(which, &mut report));
    }
    for ours in [Which::Embedded, Which::Etcd] {
        for case in ["GET", "PUT", "PATCH"] {
            let case = |name: &str| format!("{case}, {name}");
            report.add_ratio(&case(ours.name()), &case("peer, etcd"), 0, "CPU");
        }
    }
    report.finish();
}

/// The other server's program.
fn peer() -> Option<PathBuf> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--peer");
    arguments.nth(1).map(PathBuf::from)
}

async fn measure(which: &Which, report: &mut Report) {
    let (pods, requests, more, watchers) = if is_short() {
        (1_000, 2_000, 0, 100)
    } else {
        (10_000, 20_000, 90_000, 1_000)
    };
    let server = Server::start(which).await;
    let client = Client::try_from(server.config.clone()).expect("a client");
    ready(&client).await;
    let name = which.name();
    let mut add = |case: &str, taken: &Taken| {
        let case = format!("{case}, {name}");
        report.add(&case, 0, "rate", taken.a_second, "a second");
        report.add(&case, 0, "p99", taken.p99.as_secs_f64() * 1e3, "ms");
        report.add(&case, 0, "CPU", taken.cpu.as_secs_f64() * 1e6, "µs each");
    };
    tokio::time::sleep(SETTLE).await;
    let idle = server.resident();
    add("POST", &load::create(&server, &client, pods).await);
    tokio::time::sleep(SETTLE).await;
    let with_pods = server.resident();
    add("GET", &load::get(&server, &client, pods, requests).await);
    add("LIST whole", &load::list(&server, &client, 20).await);
    add("LIST page of 500", &load::pages(&server, &client, 5).await);
    add("PUT", &load::put(&server, &client, pods, requests).await);
    add(
        "PATCH",
        &load::patch(&server, &client, pods, requests).await,
    );
    // The server has so many connections for one address that those which are kept would be too many.
    drop(client);
    tokio::time::sleep(SETTLE).await;
    let events = load::fan_out(&server, &server.config, watchers, 50).await;
    add(&format!("event to one of {watchers} watchers"), &events);
    let mut memory = |case: String, bytes: u64| {
        report.add(
            format!("{case}, {name}"),
            0,
            "resident",
            bytes as f64 / 1e6,
            "MB",
        );
    };
    memory("idle".to_owned(), idle);
    memory(format!("{pods} pods"), with_pods);
    if more > 0 {
        let client = Client::try_from(server.config.clone()).expect("a client");
        load::fill(&server, &client, more).await;
        tokio::time::sleep(SETTLE).await;
        memory(format!("{} objects", pods + more), server.resident());
    }
}

/// A start goes on for a while after the server listens.
async fn ready(client: &Client) {
    for _ in 0..600 {
        let request = http::Request::get("/readyz")
            .body(Vec::new())
            .expect("a request");
        if client.request_text(request).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the server is not ready");
}
