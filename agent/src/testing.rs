//! What unit tests share.

pub(crate) mod steps;

/// Whether this test may do what only root can. Says why it skips; where the environment has `CI` it fails instead, so
/// that nothing is skipped silently where everything has to run.
pub(crate) fn root_or_skip(reason: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root || std::env::var_os("CI").is_none(),
        "not root, and CI is set: {reason}"
    );
    if !root {
        println!("skipped: {reason}");
    }
    root
}
