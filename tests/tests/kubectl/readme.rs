//! The commands of kubectl that the README shows, as they stand there.

use std::process::Command;

use kernelet_tests::scenario::Scenario;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
/// Sections whose commands a fresh cluster is tried with, in this order.
const TOUR: [&str; 2] = ["The control plane", "Trying it by hand"];
/// The one that takes a node away.
const REMOVAL: &str = "Removing it";
/// Longer than any of them takes.
const HANGS: &str = "300";

/// Needs the default namespace for itself.
pub fn tour(scenario: &Scenario) {
    let commands = commands();
    for (section, line) in &commands {
        let known = TOUR.contains(&section.as_str()) || section == REMOVAL;
        assert!(known, "nobody runs `{line}` of the section {section}");
    }
    for wanted in TOUR {
        run(scenario, &commands, wanted);
    }
}

/// The last that the cluster is for: a node of it goes.
pub fn a_node_is_removed(scenario: &Scenario) {
    run(scenario, &commands(), REMOVAL);
    let nodes = scenario.kubectl("get nodes -o name");
    assert!(!nodes.contains("worker-2"), "{nodes}");
}

fn run(scenario: &Scenario, commands: &[(String, String)], section: &str) {
    let mut lines = commands.iter().filter(|one| one.0 == section).peekable();
    assert!(lines.peek().is_some(), "{section} has no commands");
    for (_, line) in lines {
        let line = line.replace("NODE", "worker-2");
        let mut command = Command::new("timeout");
        command
            .args([HANGS, "bash", "-c", &line])
            .current_dir(ROOT)
            .env("KUBECONFIG", scenario.kubeconfig());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "{line}: {}\n{said}", output.status);
    }
}

/// What begins with `kubectl` in the README's blocks of shell, each with the heading that it is under.
fn commands() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(format!("{ROOT}README.md")).unwrap();
    let (mut section, mut block) = (String::new(), None);
    let mut found = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(kind), None) => block = Some(kind),
            (Some(_), Some(_)) => block = None,
            (None, Some("sh")) if line.starts_with("kubectl ") => {
                found.push((section.clone(), line.to_owned()));
            }
            (None, None) if line.starts_with('#') => {
                section = line.trim_start_matches('#').trim().to_owned();
            }
            _ => {}
        }
    }
    found
}
