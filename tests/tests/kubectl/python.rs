//! The Python client, as it comes, does what its users write.

use kernelet_tests::command::{command, output};
use kernelet_tests::python;

use crate::client::Client;

/// What is not there must be said, and under CI is a failure.
pub fn lives_in_the_namespace_of(client: &Client) {
    let Some(python) = python::find("python") else {
        let reason = "the Python client is not installed: run `cargo xtask setup`";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    };
    for script in ["client.py", "programs.py"] {
        let script = format!("{}/tests/kubectl/{script}", env!("CARGO_MANIFEST_DIR"));
        let said = output(
            command(&python.to_string_lossy())
                .args([&script, client.namespace])
                .env("KUBECONFIG", client.kubeconfig()),
        );
        let said = said.unwrap_or_else(|error| panic!("{error}"));
        assert!(said.ends_with("done\n"), "{script}: {said}");
    }
}
