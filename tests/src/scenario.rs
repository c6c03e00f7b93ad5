//! What the scenarios share: when they may run, and waiting for something to become true.

use std::time::{Duration, Instant};

/// Whether a cluster can be run here. Says why not, once; under `CI` a reason not to run is a failure.
pub fn can_run() -> bool {
    match obstacle() {
        None => true,
        Some(reason) if std::env::var_os("CI").is_some() => {
            panic!("cannot run, and under CI that is a failure: {reason}")
        }
        Some(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let binaries = crate::cluster::binaries();
    if !binaries.join("kernelet").exists() {
        return Some(format!(
            "{} has no kernelet: run `cargo xtask build`",
            binaries.display()
        ));
    }
    ["containerd", "runc", "ip", "nsenter", "kubectl"]
        .into_iter()
        .find(|program| crate::cluster::find_program(program).is_none())
        .map(|program| format!("{program} is not installed: run `cargo xtask setup`"))
}

/// Asks again and again until `probe` gives a value; panics with the last refusal after `limit`.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => {
                panic!("{what}: not within {} s; last: {reason}", limit.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
