//! A kubectl, and what it may say.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use kernelet_tests::scenario::{Scenario, example};
use serde_json::{Value, json};

/// One version of kubectl, in a namespace of its own.
pub struct Client<'a> {
    scenario: &'a Scenario,
    program: PathBuf,
    pub namespace: &'static str,
}

impl<'a> Client<'a> {
    pub fn new(
        scenario: &'a Scenario,
        program: impl Into<PathBuf>,
        namespace: &'static str,
    ) -> Client<'a> {
        let client = Client {
            scenario,
            program: program.into(),
            namespace,
        };
        std::fs::copy(scenario.kubeconfig(), client.kubeconfig()).unwrap();
        client.says(&format!(
            "config set-context --current --namespace={namespace}"
        ));
        client
    }

    /// The administrator's, with the client's namespace.
    pub fn kubeconfig(&self) -> PathBuf {
        let directory = &self.scenario.spec.directory;
        directory.join(format!("{}.kubeconfig", self.namespace))
    }

    /// Makes the namespace that the steps work in.
    pub fn begin(&self) {
        let manifest =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}});
        let said = self.fed("apply -f -", &manifest.to_string());
        assert_eq!(said, format!("namespace/{} created\n", self.namespace));
    }

    /// Takes the namespace away, with everything in it.
    pub fn end(&self) {
        let said = self.says(&format!("delete namespace {}", self.namespace));
        assert!(said.contains("deleted"), "{said}");
        let refused = self.refuses(&format!("get namespace {}", self.namespace));
        assert!(refused.contains("NotFound"), "{refused}");
    }

    /// The command, in the client's namespace.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--cache-dir")
            .arg(self.scenario.spec.directory.join(self.namespace))
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            // Still behind a switch.
            .env("KUBECTL_APPLYSET", "true")
            .stdin(Stdio::null());
        command
    }

    /// What a command prints that succeeds and has nothing to remark.
    pub fn says(&self, line: &str) -> String {
        self.says_all(&words(line))
    }

    /// What a command prints that succeeds, whatever it remarks.
    pub fn remarks(&self, line: &str) -> String {
        let output = self.run(&words(line), None);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, with arguments that hold white space.
    pub fn says_all(&self, arguments: &[&str]) -> String {
        self.undisturbed(arguments, &self.run(arguments, None))
    }

    /// The same, with something to read.
    pub fn fed(&self, line: &str, input: &str) -> String {
        let arguments = words(line);
        self.undisturbed(&arguments, &self.run(&arguments, Some(input)))
    }

    /// What a command says that must fail.
    pub fn refuses(&self, line: &str) -> String {
        let output = self.run(&words(line), None);
        assert!(!output.status.success(), "{line} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// An object or a list, as JSON.
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.says(&format!("get {what} -o json"))).unwrap()
    }

    /// The API server's address.
    pub fn server(&self) -> String {
        self.scenario.server()
    }

    /// A file that goes with the cluster.
    pub fn file(&self, name: &str) -> PathBuf {
        let directory = &self.scenario.spec.directory;
        directory.join(format!("{}.{name}", self.namespace))
    }

    /// A file of the example application.
    pub fn example(&self, name: &str) -> String {
        example(name).display().to_string()
    }

    fn run(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // kubectl may refuse before it has read everything.
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(input.unwrap_or_default().as_bytes());
        child.wait_with_output().unwrap()
    }

    fn undisturbed(&self, arguments: &[&str], output: &Output) -> String {
        let (said, remarked) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let line = format!("{} {}", self.program.display(), arguments.join(" "));
        assert!(
            output.status.success(),
            "{line}: {}\n{said}{remarked}",
            output.status
        );
        assert_eq!(remarked, "", "{line} remarks something\n{said}");
        said.into_owned()
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Debian's kubectl, 1.20.
pub fn debian() -> PathBuf {
    kernelet_tests::debian::program("kubernetes-client", "usr/bin/kubectl")
        .unwrap_or_else(|error| panic!("Debian's kubectl could not be fetched: {error}"))
}
