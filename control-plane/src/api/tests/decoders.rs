//! Each decoder by itself, fed with the fuzzer's seeds of which pieces are changed: what it keeps to is
//! [`decoders`](crate::api::decoders)'s to say. A seed is a good text, or one that was once a finding.
//!
//! `KERNELET_TEST_REQUESTS` says how many texts each is tried with.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::mutated::{APPLY, changed};
use super::*;
use crate::api::decoders;
use crate::auth::bearer;

/// Tries a decoder with what becomes of the seeds.
fn fed(seeds: Vec<Vec<u8>>, decoder: impl Fn(&[u8]) -> Result<(), TestCaseError>) {
    let cases = std::env::var("KERNELET_TEST_REQUESTS");
    let cases = cases.map_or(1_000, |cases| cases.parse().expect("a number"));
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    for seed in &seeds {
        decoder(seed).unwrap_or_else(|error| panic!("a seed: {error}"));
    }
    let text = select(seeds).prop_flat_map(changed);
    let outcome = TestRunner::new(config).run(&text, |text| decoder(&text));
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// The same for what takes text.
fn read(seeds: &[&str], decoder: impl Fn(&str) -> Result<(), TestCaseError>) {
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    fed(seeds, |bytes| match std::str::from_utf8(bytes) {
        Ok(text) => decoder(text),
        Err(_) => Ok(()),
    });
}

/// What the fuzzer begins with.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = format!("{}/fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
    let files =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory}: {error}"));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a seed"))
        .collect()
}

#[test]
fn every_decoder_keeps_to_what_it_promises() {
    std::thread::scope(|threads| {
        for (name, decoder) in decoders::ALL {
            let tried = move || {
                fed(seeds(name), |text| {
                    decoder(text).map_err(|why| TestCaseError::fail(format!("{name}: {why}")))
                });
            };
            threads.spawn(tried);
        }
    });
}

#[test]
fn credentials() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let f = runtime.block_on(Fixture::new());
    let made = runtime.block_on(f.call(
        "POST",
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        json!({}),
    ));
    let token = made.body["status"]["token"].as_str().expect("a token");
    let header = format!("Bearer {token}");
    let seeds = [&header, "Bearer abcdef.0123456789abcdef"];
    read(&seeds, |text| {
        let Some(shown) = bearer(text) else {
            return Ok(());
        };
        let outcome = f.api.authenticator.authenticate(None, Some(shown), 0);
        // Before the token was made it was nobody's.
        prop_assert!(!matches!(outcome, Ok(crate::auth::Credential::Account(_))));
        let now = crate::api::meta::now();
        let outcome = f.api.authenticator.authenticate(None, Some(shown), now);
        if matches!(outcome, Ok(crate::auth::Credential::Account(_))) {
            prop_assert_eq!(shown, token);
        }
        Ok(())
    });
}

#[test]
fn applied_configurations() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let f = runtime.block_on(Fixture::new());
    let uri = format!("{PODS}/p?fieldManager=m&force=true&dryRun=All");
    fed(seeds("applied"), |text| {
        let Ok(text) = std::str::from_utf8(text) else {
            return Ok(());
        };
        let answer = runtime.block_on(f.call_as(admin(), "PATCH", &uri, APPLY, text));
        prop_assert!(answer.code < 500, "{} {}", answer.code, answer.message());
        Ok(())
    });
}
