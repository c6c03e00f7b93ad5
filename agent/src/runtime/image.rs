//! Image names and configurations. Pure.

use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::RuntimeError;

/// An image that is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The full name, as containerd keeps it.
    pub name: String,
    /// Digest of what the name points to.
    pub digest: String,
    pub config: Arc<ImageConfig>,
}

impl Image {
    /// Repository and digest: what `kubectl` shows as `imageID`.
    pub fn id(&self) -> String {
        let repository = self.name.split('@').next().unwrap_or(&self.name);
        let repository = match repository.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => repository,
            _ => repository,
        };
        format!("{repository}@{}", self.digest)
    }
}

/// An image as a listing has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSummary {
    /// Every full name that it has.
    pub names: Vec<String>,
    /// Digest of what the names point to.
    pub digest: String,
    /// As it was fetched, in bytes; 0 where it cannot be read.
    pub size_bytes: u64,
    /// A container is made from it.
    pub in_use: bool,
    /// It is not to be collected.
    pub is_pinned: bool,
}

/// The part of an image's configuration that running it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    pub stop_signal: String,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
}

/// The image's configuration file, as far as it is read.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl ImageConfig {
    /// Reads an OCI or Docker image configuration.
    pub fn parse(bytes: &[u8]) -> Result<ImageConfig, serde_json::Error> {
        let file: ConfigFile = serde_json::from_slice(bytes)?;
        let process = file.config.unwrap_or_default();
        Ok(ImageConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            working_dir: process.working_dir.unwrap_or_default(),
            stop_signal: process.stop_signal.unwrap_or_default(),
            diff_ids: file.rootfs.diff_ids,
        })
    }

    /// The signal that asks a process of this image to stop: `SIGTERM` unless it names another.
    pub fn stop_signal(&self) -> i32 {
        signal_number(&self.stop_signal).unwrap_or(libc::SIGTERM)
    }

    /// Name of the snapshot that holds all the layers; empty for an image without layers.
    pub fn chain_id(&self) -> String {
        chain_ids(&self.diff_ids).pop().unwrap_or_default()
    }
}

/// Names of the snapshots of the first layer, the first two, and so on: each is the digest of the one below and the
/// layer's own.
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// The digest of `bytes` in the form `sha256:…`.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The signals that have names of their own; where a number has two, the first is its usual one.
const SIGNALS: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];
/// The first and the last real-time signal, as the C library of most systems counts them.
const REAL_TIME: (i32, i32) = (34, 64);

/// A signal by name, with or without `SIG`, or by number.
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.trim().to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |text: &str| text.parse::<i32>().ok().filter(|n| (0..=30).contains(n));
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(REAL_TIME.0),
        (_, Some("")) => Some(REAL_TIME.1),
        (Some(rest), _) => Some(REAL_TIME.0 + offset(rest.strip_prefix('+')?)?),
        (_, Some(rest)) => Some(REAL_TIME.1 - offset(rest.strip_prefix('-')?)?),
        _ => None,
    }
}

/// What the API calls a signal (KEP-4960); `None` for a number that has no name.
pub fn signal_name(number: i32) -> Option<String> {
    if let Some((name, _)) = SIGNALS.iter().find(|(_, known)| *known == number) {
        return Some(format!("SIG{name}"));
    }
    let (first, last) = REAL_TIME;
    match (number - first, last - number) {
        (0, _) => Some("SIGRTMIN".to_owned()),
        (_, 0) => Some("SIGRTMAX".to_owned()),
        (above @ 1..=15, _) => Some(format!("SIGRTMIN+{above}")),
        (_, below @ 1..=14) => Some(format!("SIGRTMAX-{below}")),
        _ => None,
    }
}

/// The full form of an image name: registry, repository and tag or digest.
///
/// `frontend:v1` is `docker.io/library/frontend:v1`; without tag and digest the tag is `latest`.
pub fn normalize(name: &str) -> Result<String, RuntimeError> {
    let bad = |reason| RuntimeError::ImageName {
        name: name.to_owned(),
        reason,
    };
    if name.is_empty() {
        return Err(bad("it is empty"));
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(bad("what follows @ is not a digest"));
    }
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(bad("what follows : is not a tag"));
    }
    // The first part names a registry only if it looks like a host, as it does for Docker.
    let (registry, path) = match repository.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (
            if first == "index.docker.io" {
                "docker.io"
            } else {
                first
            },
            path.to_owned(),
        ),
        Some(_) => ("docker.io", repository.to_owned()),
        None => ("docker.io", format!("library/{repository}")),
    };
    if path.is_empty() || !path.split('/').all(is_path_component) {
        return Err(bad(
            "its parts must be lower-case letters, digits and single separators . _ -",
        ));
    }
    let mut full = format!("{registry}/{path}");
    match (tag, digest) {
        // A digest says more than a tag does.
        (_, Some(digest)) => full.push_str(&format!("@{digest}")),
        (Some(tag), None) => full.push_str(&format!(":{tag}")),
        (None, None) => full.push_str(":latest"),
    }
    Ok(full)
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn is_tag(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_path_component(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_get_their_full_form() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (short, full) in [
            ("frontend:v0.0.1", "docker.io/library/frontend:v0.0.1"),
            ("busybox", "docker.io/library/busybox:latest"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/team/app:1", "docker.io/team/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("registry:5000/app", "registry:5000/app:latest"),
            ("ghcr.io/a/b/c:v2", "ghcr.io/a/b/c:v2"),
        ] {
            assert_eq!(normalize(short).unwrap(), full);
        }
        assert_eq!(
            normalize(&format!("app:v1@{digest}")).unwrap(),
            format!("docker.io/library/app@{digest}")
        );
    }

    #[test]
    fn bad_names_say_why() {
        for name in [
            "",
            "UPPER",
            "a//b",
            "app:",
            "app@sha256:zz",
            "app:-x",
            "-app",
            "a b",
        ] {
            let error = normalize(name).unwrap_err().to_string();
            assert!(error.contains("is not an image name"), "{error}");
        }
    }

    #[test]
    fn chain_ids_follow_the_layers() {
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        let one = vec!["sha256:aa".to_owned()];
        assert_eq!(chain_ids(&one), one);
        let two = vec!["sha256:aa".to_owned(), "sha256:bb".to_owned()];
        assert_eq!(chain_ids(&two)[1], sha256(b"sha256:aa sha256:bb"));
    }

    #[test]
    fn a_config_is_read_and_its_absent_parts_are_empty() {
        let config = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/x"],"StopSignal":"SIGQUIT"},
                "rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}"#,
        )
        .unwrap();
        assert_eq!(config.cmd, ["/bin/x"]);
        assert_eq!(config.stop_signal(), libc::SIGQUIT);
        assert_eq!(config.chain_id(), "sha256:aa");
        let bare = ImageConfig::parse(br#"{"rootfs":{"diff_ids":[]}}"#).unwrap();
        assert_eq!(bare, ImageConfig::default());
        assert_eq!(bare.stop_signal(), libc::SIGTERM);
    }

    #[test]
    fn each_signal_has_a_number_and_a_name() {
        assert_eq!(signal_number("SIGUSR1"), Some(libc::SIGUSR1));
        assert_eq!(signal_number("rtmin+3"), Some(37));
        assert_eq!(signal_number("SIGRTMAX-1"), Some(63));
        assert_eq!(signal_number("15"), Some(libc::SIGTERM));
        for unknown in ["", "SIGNOT", "0", "65", "SIGRTMIN+31", "SIGRTMIN3"] {
            assert_eq!(signal_number(unknown), None, "{unknown}");
        }
        for number in 1..=64 {
            // 32 and 33 are the C library's own.
            let name = signal_name(number);
            assert_eq!(name.is_none(), [32, 33].contains(&number), "{number}");
            assert!(name.is_none_or(|name| signal_number(&name) == Some(number)));
        }
        assert_eq!(signal_name(libc::SIGABRT).as_deref(), Some("SIGABRT"));
    }

    #[test]
    fn an_image_id_names_the_repository_and_the_digest() {
        let image = |name: &str| Image {
            name: name.into(),
            digest: "sha256:d".into(),
            config: Arc::default(),
        };
        assert_eq!(
            image("docker.io/library/a:v1").id(),
            "docker.io/library/a@sha256:d"
        );
        assert_eq!(
            image("registry:5000/a@sha256:d").id(),
            "registry:5000/a@sha256:d"
        );
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_nothing(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}(:[a-z0-9.]{1,6})?") {
            if let Ok(full) = normalize(&name) {
                prop_assert_eq!(normalize(&full).unwrap(), full);
            }
        }
    }
}
