//! The sample frontend: a page that shows which backend answered, and `/calls?count=N`, which asks N times.

use std::collections::BTreeMap;
use std::time::Instant;

use frontend_backend::{Answers, Calls, Identity, Reply, serve};

/// Seconds until a call to the backend counts as failed.
const TIMEOUT: u64 = 5;
/// The most calls that one request may ask for.
const MOST_CALLS: u64 = 100_000;

fn main() -> std::io::Result<()> {
    let endpoint = std::env::var("BACKEND_ENDPOINT").map_err(|_| {
        std::io::Error::other(
            "BACKEND_ENDPOINT is not set: it names the backend, for example http://backend",
        )
    })?;
    let identity = Identity::from_env();
    serve(3000, move |request| {
        let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
        match path {
            "/" => page(&identity, &endpoint),
            "/calls" => match count(query) {
                Some(count) => Reply::json(&calls(&identity, &endpoint, count)),
                None => Reply::text(
                    400,
                    format!("count must be a number from 1 to {MOST_CALLS}\n"),
                ),
            },
            "/healthz" => Reply::text(200, "ok\n"),
            other => Reply::text(404, format!("there is nothing at {other}\n")),
        }
    })
}

fn count(query: &str) -> Option<u64> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("count="))
        .unwrap_or("1");
    value
        .parse()
        .ok()
        .filter(|count| (1..=MOST_CALLS).contains(count))
}

/// One call on a connection of its own, so that each is a choice of backend.
fn call(endpoint: &str) -> Result<Identity, String> {
    let response = minreq::get(endpoint)
        .with_timeout(TIMEOUT)
        .send()
        .map_err(|error| error.to_string())?;
    if response.status_code != 200 {
        return Err(format!("{endpoint} answered {}", response.status_code));
    }
    serde_json::from_slice(response.as_bytes())
        .map_err(|error| format!("{endpoint} gave no identity: {error}"))
}

fn calls(identity: &Identity, endpoint: &str, count: u64) -> Calls {
    let mut answers = BTreeMap::<Identity, u64>::new();
    let mut failures = 0;
    let mut first_failure = None;
    let mut times_us = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        match call(endpoint) {
            Ok(backend) => {
                times_us.push(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
                *answers.entry(backend).or_default() += 1;
            }
            Err(why) => {
                failures += 1;
                first_failure.get_or_insert(why);
            }
        }
    }
    let answers = answers
        .into_iter()
        .map(|(backend, count)| Answers { backend, count })
        .collect();
    Calls {
        frontend: identity.clone(),
        answers,
        times_us,
        failures,
        first_failure,
    }
}

fn page(identity: &Identity, endpoint: &str) -> Reply {
    let answer = match call(endpoint) {
        Ok(backend) => format!("{} on {} answered.", backend.pod, backend.node),
        Err(why) => format!("No answer: {why}"),
    };
    Reply::html(format!(
        "<!doctype html><meta charset=utf-8><title>frontend</title>\
         <h1>Frontend {} on {}</h1><p>I asked {endpoint}. {answer}</p>\n",
        identity.pod, identity.node
    ))
}
