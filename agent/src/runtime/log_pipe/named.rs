//! Outputs that are named pipes: those of a container that reads an input and has no terminal, for which containerd's shim
//! knows no other way.
//!
//! The agent starts the writer of their log. Where it ends with the agent, the next agent starts another; until then what
//! the container writes waits in the pipes.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_setfl, flock, open as open_file};
use tokio::process::{Child, Command};

/// Says that the container may have ended: where nobody writes, nobody will.
pub(super) const AGAIN: &str = "again";
/// Says that the container is about to start.
const FIRST: &str = "first";

/// The pipe of stdout below a container's directory.
pub const STDOUT: &str = "stdout";
/// The pipe of stderr.
pub const STDERR: &str = "stderr";
/// A link to the log.
const LOG: &str = "log";
/// Locked by whoever reads the pipes.
const READER: &str = "reader";

/// Both pipes, and the lock that says so; `None` where another process reads them.
pub(super) fn open(directory: &Path, again: bool) -> io::Result<Option<[OwnedFd; 3]>> {
    let lock = File::create(directory.join(READER))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let pipe = |name: &str| {
        let mut flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if again {
            flags |= OFlags::NONBLOCK;
        }
        let pipe = open_file(directory.join(name), flags, Mode::empty())?;
        fcntl_setfl(&pipe, OFlags::empty())?;
        Ok::<_, io::Error>(pipe)
    };
    // In the order in which the shim opens its ends, and waits for these.
    let (out, err) = (pipe(STDOUT)?, pipe(STDERR)?);
    Ok(Some([out, err, lock.into()]))
}

/// Starts the writer of a container that is about to start. The pipes are in `directory`.
pub(in crate::runtime) fn start(program: &Path, log: &Path, directory: &Path) -> io::Result<Child> {
    let link = directory.join(LOG);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(log, link)?;
    spawn(program, log, directory, FIRST)
}

/// Starts the writers that have ended with an earlier agent. Where there is one, or nothing to write, they end at once.
pub(in crate::runtime) fn resume(program: &Path, scratch: &Path) {
    let entries = fs::read_dir(scratch).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let log = fs::read_link(entry.path().join(LOG)).ok()?;
        Some((entry.path(), log))
    });
    for (directory, log) in found.collect::<Vec<(PathBuf, PathBuf)>>() {
        match spawn(program, &log, &directory, AGAIN) {
            Ok(child) => reap(child),
            Err(error) => {
                tracing::warn!(%error, log = %log.display(), "nobody writes this log any more");
            }
        }
    }
}

fn spawn(program: &Path, log: &Path, directory: &Path, how: &str) -> io::Result<Child> {
    Command::new(program)
        .arg("log-pipe")
        .args([log, directory])
        .arg(how)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

/// Waits for a writer's end, so that no zombie is left of it.
pub(in crate::runtime) fn reap(mut child: Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}
