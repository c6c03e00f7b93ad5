//! What of a pod depends on the operating system that it is for.

use k8s_openapi::api::core::v1::PodSpec;

use crate::resources::validate::{FieldError, Path};

const SYSTEMS: &[&str] = &["linux", "windows"];
/// The names of signals by which Linux asks a process to stop, but for the numbered real-time ones.
const LINUX: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMIN",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
const WINDOWS: &[&str] = &["SIGKILL", "SIGTERM"];

/// What is wrong with the name of the system, and with the signals that ask containers to stop (KEP-4960).
pub(super) fn errors(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let system = spec.os.as_ref().map(|os| os.name.as_str());
    let name = path.child("os").child("name");
    let mut errors: Vec<_> = match system {
        Some("") => vec![name.required("cannot be empty")],
        Some(other) if !SYSTEMS.contains(&other) => vec![name.unsupported(other, SYSTEMS)],
        _ => Vec::new(),
    };
    let lists = [
        ("containers", Some(&spec.containers)),
        ("initContainers", spec.init_containers.as_ref()),
    ];
    for (field, list) in lists {
        for (index, container) in list.into_iter().flatten().enumerate() {
            let signal = container.lifecycle.as_ref();
            let Some(signal) = signal.and_then(|it| it.stop_signal.as_deref()) else {
                continue;
            };
            let path = path.child(field).index(index).child("lifecycle");
            errors.extend(stop_signal(&path.child("stopSignal"), signal, system));
        }
    }
    errors
}

fn stop_signal(path: &Path, signal: &str, system: Option<&str>) -> Option<FieldError> {
    match system.unwrap_or_default() {
        "" => Some(path.forbidden("may not be set for containers with empty `spec.os.name`")),
        "windows" => (!WINDOWS.contains(&signal)).then(|| path.unsupported(signal, WINDOWS)),
        "linux" if !LINUX.contains(&signal) && !is_real_time(signal) => {
            let real_time = (1..=15).map(|n| format!("SIGRTMIN+{n}"));
            let real_time = real_time.chain((1..=14).map(|n| format!("SIGRTMAX-{n}")));
            let mut all: Vec<String> = LINUX.iter().map(|&name| name.to_owned()).collect();
            all.extend(real_time);
            all.sort();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            Some(path.unsupported(signal, &all))
        }
        _ => None,
    }
}

/// Whether it is one of `SIGRTMIN+1` to `SIGRTMIN+15` and `SIGRTMAX-14` to `SIGRTMAX-1`.
fn is_real_time(signal: &str) -> bool {
    let within = |rest: &str, most| {
        let number: Option<u8> = rest.parse().ok();
        number.is_some_and(|n| (1..=most).contains(&n) && n.to_string() == rest)
    };
    let above = signal.strip_prefix("SIGRTMIN+");
    let below = signal.strip_prefix("SIGRTMAX-");
    above.is_some_and(|rest| within(rest, 15)) || below.is_some_and(|rest| within(rest, 14))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn texts(os: Value, signal: &str) -> Vec<String> {
        let spec = json!({
            "os": os, "containers": [{"name": "a", "lifecycle": {"stopSignal": signal}}],
        });
        let spec = serde_json::from_value(spec).unwrap();
        let errors = errors(&Path::new("spec"), &spec);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_stop_signal_is_one_of_the_pod_s_system() {
        let linux = json!({"name": "linux"});
        for signal in ["SIGUSR1", "SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX"] {
            assert_eq!(
                texts(linux.clone(), signal),
                Vec::<String>::new(),
                "{signal}"
            );
        }
        let at = "spec.containers[0].lifecycle.stopSignal";
        for signal in ["USR1", "SIGRTMIN+16", "SIGRTMIN+01", "SIGRTMAX-15"] {
            let found = texts(linux.clone(), signal);
            let wanted =
                format!("{at}: Unsupported value: \"{signal}\": supported values: \"SIGABRT\"");
            assert!(found[0].starts_with(&wanted), "{found:?}");
        }
        assert_eq!(
            texts(Value::Null, "SIGTERM"),
            [format!(
                "{at}: Forbidden: may not be set for containers with empty `spec.os.name`"
            )]
        );
        assert_eq!(
            texts(json!({"name": "windows"}), "SIGUSR1"),
            [format!(
                "{at}: Unsupported value: \"SIGUSR1\": supported values: \"SIGKILL\", \"SIGTERM\""
            )]
        );
        assert_eq!(
            texts(json!({"name": "plan9"}), "SIGTERM"),
            [
                "spec.os.name: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""
            ]
        );
    }
}
