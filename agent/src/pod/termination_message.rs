//! The termination message of a container that ended, for its status.

use std::path::Path;

use k8s_openapi::api::core::v1::Container as ContainerSpec;

use super::paths::Paths;
use crate::runtime::{Container, ContainerState, Exit, log_pipe};

/// How much of it is kept, in bytes, as upstream.
const LIMIT: usize = 4096;
/// How much of it all containers of a pod have together, in equal shares, as upstream.
const POD_LIMIT: usize = 12 * 1024;
/// How much of a log is kept in its place: bytes and lines, as upstream.
const LOG_LIMIT: usize = 2048;
const LOG_LINES: usize = 80;
/// Bytes of log files that hold as much of what the container wrote: each line has a head of some forty.
const LOG_TAIL: usize = 16 * 1024;

/// What the container wrote; without that, where the spec asks for that, the end of its log: nothing yet where that is not
/// written to its end, which it is when the container's end is written down.
pub(super) fn read(
    paths: &Paths,
    spec: Option<&ContainerSpec>,
    container: &Container,
    exit: &Exit,
) -> Option<String> {
    let (pod, name, attempt) = (&container.pod, &container.name, container.attempt);
    let message = tail(&paths.termination_log(&pod.uid, name, attempt), LIMIT);
    let falls_back = spec.is_some_and(|spec| {
        spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
    });
    if !message.is_empty() || !falls_back || exit.code == 0 {
        return Some(message);
    }
    if !matches!(container.state, ContainerState::Exited(_)) {
        return None;
    }
    let logs = log_pipe::files(&paths.log(pod, name, attempt));
    // The last one may have been begun just before the end.
    let recent = &logs[logs.len().saturating_sub(2)..];
    let text: String = recent.iter().map(|file| tail(file, LOG_TAIL)).collect();
    Some(said(&text))
}

/// As much of a message as one of so many containers may have: its beginning.
pub(super) fn share(mut message: String, containers: usize) -> String {
    let share = POD_LIMIT / containers.max(1);
    message.truncate(message.floor_char_boundary(share));
    message
}

/// The last of what a container wrote, from lines of a log in CRI's format: time, stream, whether the line ends here (`F`) or
/// goes on (`P`), text.
fn said(log: &str) -> String {
    let mut said = String::new();
    for line in log.lines() {
        let mut parts = line.splitn(4, ' ').skip(1);
        // The first line may have lost its beginning.
        let (Some("stdout" | "stderr"), Some(tag), text) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        said.push_str(text.unwrap_or_default());
        if tag == "F" {
            said.push('\n');
        }
    }
    let lines: Vec<&str> = said.split_inclusive('\n').collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].concat();
    let cut = last.len().saturating_sub(LOG_LIMIT);
    last[last.ceil_char_boundary(cut)..].to_owned()
}

/// The last `limit` bytes of a file.
fn tail(path: &Path, limit: usize) -> String {
    use std::os::unix::fs::FileExt;
    let Ok(file) = std::fs::File::open(path) else {
        return String::new();
    };
    let size = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; limit.min(usize::try_from(size).unwrap_or(limit))];
    match file.read_at(&mut bytes, size.saturating_sub(limit as u64)) {
        Ok(count) => String::from_utf8_lossy(&bytes[..count]).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::PodStatus;
    use serde_json::json;

    use super::*;
    use crate::pod::observed::Observed;
    use crate::pod::spec::PodView;
    use crate::pod::status::{Surroundings, status};
    use crate::pod::testing::failed;

    const HEAD: &str = "2026-11-21T09:19:08.708255573Z stdout";

    #[test]
    fn a_log_is_told_as_the_container_wrote_it() {
        let log =
            format!("cut off\n{HEAD} F one\n{HEAD} P tw\n{HEAD} F o\n{HEAD} F \n{HEAD} P end");
        assert_eq!(said(&log), "one\ntwo\n\nend");
        assert_eq!(said(""), "");
    }

    #[test]
    fn of_a_long_log_the_end_is_told() {
        let lines = |count: usize, text: &str| -> String {
            (0..count)
                .map(|n| format!("{HEAD} F {text}{n}\n"))
                .collect()
        };
        let short = said(&lines(200, "a"));
        assert_eq!(short.lines().count(), LOG_LINES);
        assert!(short.starts_with("a120\n") && short.ends_with("a199\n"));
        let long = said(&lines(10, &"ä".repeat(1000)));
        assert!(long.len() <= LOG_LIMIT && long.ends_with("ä9\n"));
    }

    #[test]
    fn of_a_file_the_last_4096_bytes_count_and_else_the_last_2048_of_the_log() {
        let place = tempfile::tempdir().unwrap();
        let paths = Paths::new(place.path().into(), place.path().into(), "/".into());
        let container = failed("c");
        let spec: ContainerSpec = serde_json::from_value(json!({
            "name": "c", "terminationMessagePolicy": "FallbackToLogsOnError",
        }))
        .unwrap();
        let file = paths.termination_log("u", "c", 0);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let log = paths.log(&container.pod, "c", 0);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let told = |spec| {
            let exit = container.state.exit().unwrap();
            read(&paths, spec, &container, exit).unwrap()
        };
        for length in [4095, 4096, 4097] {
            let text: String = (0..length)
                .map(|n| char::from(b'a' + n as u8 % 26))
                .collect();
            std::fs::write(&file, &text).unwrap();
            assert_eq!(told(Some(&spec)), text[text.len().saturating_sub(4096)..]);
        }
        std::fs::write(&file, "").unwrap();
        for (length, kept) in [(2047, 2047), (2048, 2048), (2049, 2048)] {
            let line = format!("{HEAD} F {}\n", "x".repeat(length - 1));
            std::fs::write(&log, line).unwrap();
            assert_eq!(told(Some(&spec)).len(), kept);
        }
        let lines: String = (0..81).map(|n| format!("{HEAD} F {n}\n")).collect();
        std::fs::write(&log, lines).unwrap();
        let last = told(Some(&spec));
        assert_eq!((last.lines().next(), last.lines().count()), (Some("1"), 80));
        assert_eq!(told(None), "", "a log is told only if that is asked for");
    }

    #[test]
    fn all_containers_of_a_pod_share_12_kib() {
        let told = |init: usize, main: usize, debug: usize| {
            let named = |kind: &str, count: usize| -> Vec<_> {
                (0..count)
                    .map(|n| json!({"name": format!("{kind}{n}")}))
                    .collect()
            };
            let object = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {
                    "restartPolicy": "Never", "initContainers": named("init", init),
                    "containers": named("main", main), "ephemeralContainers": named("debug", debug),
                },
            });
            let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
            let names = pod.every_container().map(|spec| spec.name.clone());
            let containers: Vec<_> = names.map(|name| failed(&name)).collect();
            let text = format!("first{}", "ä".repeat(2045));
            let around = Surroundings {
                termination_messages: containers
                    .iter()
                    .map(|it| (it.id.clone(), text.clone()))
                    .collect(),
                ..Surroundings::default()
            };
            let observed = Observed {
                containers,
                ..Observed::default()
            };
            let before = PodStatus::default();
            let status = status(&pod, &observed, &around, &before, Timestamp::UNIX_EPOCH);
            let all = [
                status.init_container_statuses,
                status.container_statuses,
                status.ephemeral_container_statuses,
            ];
            let ends = all
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|it| it.state?.terminated?.message);
            let ends: Vec<String> = ends.collect();
            assert!(ends.iter().all(|end| end.starts_with("first")), "{ends:?}");
            ends.iter().map(String::len).collect::<Vec<_>>()
        };
        assert_eq!(told(0, 3, 0), [4095; 3]);
        assert_eq!(told(1, 2, 1), [3071; 4], "no character is cut in two");
        assert_eq!(told(1, 11, 0), [1023; 12]);
    }
}
