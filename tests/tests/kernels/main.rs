//! The service programs on other kernels: `kernelet self-test`, here and on machines with Debian's kernels.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod guest;

use std::process::Command;

use kernelet_tests::cluster::{binaries, find_program, target};
use kernelet_tests::kernels;
use serde_json::Value;

/// Checks that may be skipped nowhere.
const NEEDED: [&str; 24] = [
    "programs",
    "tables",
    "TCP over IPv4",
    "TCP over IPv4-mapped IPv6",
    "TCP over IPv6",
    "connected UDP over IPv4",
    "connected UDP over IPv6",
    "unconnected UDP over IPv4",
    "unconnected UDP over IPv4-mapped IPv6",
    "unconnected UDP over IPv6",
    "no backend",
    "counters",
    "closing sockets",
    "pod links",
    "outside over IPv4",
    "outside over IPv6",
    "outside by either of two links",
    "outside to a pod's own address",
    "direct server return",
    "outside through an upgrade",
    "network policies",
    "translated connections",
    "adoption",
    "upgrade",
];

#[test]
fn the_programs_do_their_work_on_the_running_kernel() {
    if skipped(&[]) {
        return;
    }
    let mut command = Command::new(binaries().join("kernelet"));
    let result = command.args(["self-test", "-o", "json"]).output().unwrap();
    let printed = String::from_utf8(result.stdout).unwrap();
    assert_passed(&printed, &result.status.code().unwrap().to_string());
}

#[test]
fn the_programs_do_their_work_on_linux_6_1() {
    on("6.1");
}

#[test]
fn the_programs_do_their_work_on_linux_6_12() {
    on("6.12");
}

fn on(series: &str) {
    if skipped(&["qemu-system-x86_64", "cpio", "busybox", "strip", "xz"]) {
        return;
    }
    let Some(kernel) = kernels::find(series) else {
        skip(&format!(
            "there is no Linux {series} below target/kernels: run `cargo xtask setup`"
        ));
        return;
    };
    let directory = target().join("scenarios").join(format!("kernel-{series}"));
    std::fs::create_dir_all(&directory).unwrap();
    let program = binaries().join("kernelet");
    let (printed, code) = guest::run(&kernel, &directory, &program, "self-test -o json");
    let found = assert_passed(&printed, &code);
    let release = &found["features"][0]["detail"];
    assert!(
        release
            .as_str()
            .unwrap()
            .starts_with(&format!("Linux {series}.")),
        "{release}"
    );
}

fn assert_passed(printed: &str, code: &str) -> Value {
    let found: Value =
        serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let checks = found["checks"].as_array().unwrap();
    let verdict = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.map(|check| check["verdict"].clone())
    };
    for name in NEEDED {
        assert_eq!(verdict(name), Some("passed".into()), "{name}: {printed}");
    }
    assert!(
        checks.iter().all(|check| check["verdict"] != "failed"),
        "{printed}"
    );
    assert_eq!(code, "0");
    found
}

fn skipped(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| find_program(name).is_none());
    let obstacle = if !rustix::process::geteuid().is_root() {
        Some("needs root".to_owned())
    } else if !binaries().join("kernelet").exists() {
        Some("there is no kernelet: run `cargo xtask build`".to_owned())
    } else {
        missing.map(|name| format!("{name} is not installed: run `cargo xtask setup`"))
    };
    obstacle.inspect(|why| skip(why)).is_some()
}

fn skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "cannot run, and under CI that is a failure: {why}"
    );
    eprintln!("skipped: {why}");
}
