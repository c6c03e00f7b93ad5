//! A container's identity and end, written as labels on containerd's record of it.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{ContainerConfig, ContainerUser, Exit, ExitCause, PodRef, Stdio};

pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_NAME: &str = "io.kubernetes.pod.name";
const NAME: &str = "io.kubernetes.container.name";
const ATTEMPT: &str = "kernelet.io/attempt";
const STREAK: &str = "kernelet.io/streak";
const SPEC_HASH: &str = "kernelet.io/spec-hash";
const IMAGE_ID: &str = "kernelet.io/image-id";
const IMAGE: &str = "kernelet.io/image";
const STOP_SIGNAL: &str = "kernelet.io/stop-signal";
/// `uid:gid:group,group`.
const USER: &str = "kernelet.io/user";
const BOOT_ID: &str = "kernelet.io/boot-id";
const CGROUP: &str = "kernelet.io/cgroup";
/// There when the container has an input; `once` when that ends with its first writer.
const STDIN: &str = "kernelet.io/stdin";
/// There when the container has a terminal.
const TTY: &str = "kernelet.io/tty";
/// What the container was given.
pub(super) const GIVEN: &str = "kernelet.io/given";
const OWNER: &str = "kernelet.io/owner";
/// Says that the container's process was started.
pub(super) const STARTED: (&str, &str) = ("kernelet.io/started", "true");
/// There when something is to be done after the container's start: whether it is.
const HOOK: &str = "kernelet.io/post-start";
const DUE: &str = "due";
pub(super) const HOOK_DONE: (&str, &str) = (HOOK, "done");
const EXIT_CODE: &str = "kernelet.io/exit-code";
const EXIT_AT: &str = "kernelet.io/exit-at";
const EXIT_CAUSE: &str = "kernelet.io/exit-cause";
const EXIT_MESSAGE: &str = "kernelet.io/exit-message";

/// containerd refuses a label whose key and value together are longer than 4096 bytes.
const MESSAGE_LIMIT: usize = 3072;

/// Finds the containers that agents made among all of the namespace.
pub(super) const FILTER: &str = "labels.\"kernelet.io/owner\"==agent";

pub(super) type Labels = HashMap<String, String>;

/// The labels that the agent reads back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) pod: PodRef,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) streak: u32,
    pub(super) spec_hash: String,
    pub(super) image: String,
    pub(super) image_id: String,
    pub(super) given: String,
    pub(super) stop_signal: i32,
    pub(super) user: Option<ContainerUser>,
    pub(super) boot_id: String,
    pub(super) cgroup: String,
    pub(super) stdio: Stdio,
    pub(super) hook_due: bool,
    pub(super) exit: Option<Exit>,
}

/// Labels of a container that is about to be made.
pub(super) fn write(
    config: &ContainerConfig,
    image_id: &str,
    stop_signal: i32,
    user: &ContainerUser,
    boot_id: &str,
) -> Labels {
    let stdio = config.stdio;
    let stdin = if stdio.stdin_once { "once" } else { "yes" };
    let some = [
        stdio.stdin.then(|| (STDIN, stdin.to_owned())),
        stdio.tty.then(|| (TTY, "yes".to_owned())),
        config.hook_due.then(|| (HOOK, DUE.to_owned())),
        write_user(user).map(|user| (USER, user)),
    ];
    [
        (OWNER, "agent".to_owned()),
        (POD_UID, config.pod.uid.clone()),
        (POD_NAMESPACE, config.pod.namespace.clone()),
        (POD_NAME, config.pod.name.clone()),
        (NAME, config.name.clone()),
        (ATTEMPT, config.attempt.to_string()),
        (STREAK, config.streak.to_string()),
        (SPEC_HASH, config.spec_hash.clone()),
        (IMAGE, config.image.clone().unwrap_or_default()),
        (IMAGE_ID, image_id.to_owned()),
        (GIVEN, config.given.clone()),
        (STOP_SIGNAL, stop_signal.to_string()),
        (BOOT_ID, boot_id.to_owned()),
        (CGROUP, config.cgroup.to_string_lossy().into_owned()),
    ]
    .into_iter()
    .chain(some.into_iter().flatten())
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// Adds how the container ended.
pub(super) fn write_exit(labels: &mut Labels, exit: &Exit) {
    let cause = match exit.cause {
        ExitCause::Process => "process",
        ExitCause::OutOfMemory => "out-of-memory",
        ExitCause::Start => "start",
        ExitCause::Unknown => "unknown",
    };
    let mut message = exit.message.clone();
    if message.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT)
            .rev()
            .find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
    }
    for (key, value) in [
        (EXIT_CODE, exit.code.to_string()),
        (EXIT_AT, exit.at.to_string()),
        (EXIT_CAUSE, cause.to_owned()),
        (EXIT_MESSAGE, message),
    ] {
        labels.insert(key.to_owned(), value);
    }
}

/// Reads the labels back; `None` for a container that no agent made.
pub(super) fn read(labels: &Labels) -> Option<Identity> {
    let text = |key: &str| labels.get(key).cloned();
    let number = |key: &str| labels.get(key).and_then(|value| value.parse().ok());
    Some(Identity {
        pod: PodRef {
            uid: text(POD_UID)?,
            namespace: text(POD_NAMESPACE)?,
            name: text(POD_NAME)?,
        },
        name: text(NAME)?,
        attempt: number(ATTEMPT)?,
        streak: number(STREAK).unwrap_or(0),
        spec_hash: text(SPEC_HASH).unwrap_or_default(),
        image: text(IMAGE).unwrap_or_default(),
        image_id: text(IMAGE_ID).unwrap_or_default(),
        given: text(GIVEN).unwrap_or_default(),
        stop_signal: labels
            .get(STOP_SIGNAL)
            .and_then(|value| value.parse().ok())
            .unwrap_or(libc::SIGTERM),
        user: labels.get(USER).and_then(|text| read_user(text)),
        boot_id: text(BOOT_ID).unwrap_or_default(),
        cgroup: text(CGROUP).unwrap_or_default(),
        stdio: stdio(labels),
        hook_due: labels.get(HOOK).is_some_and(|hook| hook == DUE),
        exit: read_exit(labels),
    })
}

/// `None` for one in more groups than there is room for.
fn write_user(user: &ContainerUser) -> Option<String> {
    let groups: Vec<_> = user.groups.iter().map(u32::to_string).collect();
    let text = format!("{}:{}:{}", user.uid, user.gid, groups.join(","));
    (text.len() <= MESSAGE_LIMIT).then_some(text)
}

/// What [`write_user`] has written.
fn read_user(text: &str) -> Option<ContainerUser> {
    let mut fields = text.split(':');
    let mut number = || fields.next()?.parse().ok();
    let (uid, gid) = (number()?, number()?);
    let groups = fields.next()?.split(',').filter(|group| !group.is_empty());
    Some(ContainerUser {
        uid,
        gid,
        groups: groups
            .map(|group| group.parse().ok())
            .collect::<Option<_>>()?,
    })
}

/// What the container's first process has besides its outputs.
pub(super) fn stdio(labels: &Labels) -> Stdio {
    let stdin = labels.get(STDIN);
    Stdio {
        stdin: stdin.is_some(),
        stdin_once: stdin.is_some_and(|stdin| stdin == "once"),
        tty: labels.contains_key(TTY),
    }
}

pub(super) fn is_started(labels: &Labels) -> bool {
    labels.contains_key(STARTED.0)
}

fn read_exit(labels: &Labels) -> Option<Exit> {
    Some(Exit {
        code: labels.get(EXIT_CODE)?.parse().ok()?,
        at: labels
            .get(EXIT_AT)
            .and_then(|at| at.parse::<Timestamp>().ok())
            .unwrap_or(Timestamp::UNIX_EPOCH),
        cause: match labels.get(EXIT_CAUSE).map(String::as_str) {
            Some("process") => ExitCause::Process,
            Some("out-of-memory") => ExitCause::OutOfMemory,
            Some("start") => ExitCause::Start,
            _ => ExitCause::Unknown,
        },
        message: labels.get(EXIT_MESSAGE).cloned().unwrap_or_default(),
    })
}
