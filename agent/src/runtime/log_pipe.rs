//! The process that writes one container's log: `kernelet log-pipe FILE`.
//!
//! containerd's shim starts it beside the container, with the container's output on descriptors 3 and 4 and a pipe on 5
//! that it closes when it is ready. It is no child of the agent, so logs outlive it. A thread and a fixed buffer for each
//! output, no more: there is one such process for each container.
//!
//! Reading never stops: a container whose output nobody reads dies of SIGPIPE or blocks. What cannot be written, as on a
//! full disk, is dropped and counted, and the log says so once it can be written again.
//!
//! The log has the format of the Container Runtime Interface, `TIME STREAM F|P TEXT`, and is rotated by size: `0.log` is
//! written, `0.log.1` is the newest of the full ones.

mod audience;
pub(super) mod named;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use rustix::fs::{Mode, fchmod};

use audience::Audience;
pub use audience::{HEAD, by_short_name, socket};

/// Size at which a log is rotated, in bytes.
const ROTATE_AT: u64 = 10 << 20;

/// How many full logs are kept beside the one that is written.
const KEEP: u32 = 4;

/// The longest piece of a line that is written as one entry, in bytes; a longer line becomes several, marked `P`.
const LONGEST: usize = 16 << 10;

/// Which of the container's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }
}

/// Runs the log writer; `args` are what follows `log-pipe` on the command line: the log's file name, and for a container
/// whose outputs are named pipes their directory. The end of both outputs ends it.
pub fn run(args: &[String]) -> ExitCode {
    let (log, pumped) = match args {
        [log] => {
            // The shim sends it when it removes the task, while the last words are still in the pipes.
            // SAFETY: ignoring a signal installs no handler that could run.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            let outputs = inherited();
            let pumped =
                outputs.and_then(|[out, err, ready]| pump(Path::new(log), out, err, ready));
            (log, pumped)
        }
        [log, directory, how] => {
            let outputs = named::open(Path::new(directory), how == named::AGAIN);
            let pumped = outputs.and_then(|outputs| match outputs {
                Some([out, err, lock]) => {
                    let copy = lock.try_clone()?;
                    pump(Path::new(log), out, err, lock).map(|()| drop(copy))
                }
                None => Ok(()),
            });
            (log, pumped)
        }
        _ => {
            eprintln!("log-pipe: containerd's shim and the agent run this, with a log's file name");
            return ExitCode::from(2);
        }
    };
    match pumped {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-pipe: cannot read what to write to {log}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes both outputs to the log. `ready` is closed when that has begun.
fn pump(path: &Path, out: OwnedFd, err: OwnedFd, ready: OwnedFd) -> io::Result<()> {
    let log = Mutex::new(Log::new(path, ROTATE_AT));
    let audience = Audience::open(path);
    for output in [&out, &err] {
        // Programs open them by name, as `/dev/stdout`. Those of a user namespace cannot be made their owners. Nobody else
        // has a way to them.
        if let Err(error) = fchmod(output, Mode::from_raw_mode(0o666)) {
            eprintln!(
                "log-pipe: /dev/stdout may be closed to whoever writes {}: {error}",
                path.display()
            );
        }
    }
    drop(ready);
    let copy = |fd, stream| {
        let mut input = Input::new(File::from(fd), stream);
        while input.pass_on(&log, &audience)? {}
        Ok(())
    };
    std::thread::scope(|scope| {
        let errors = scope.spawn(|| copy(err, Stream::Err));
        let result = copy(out, Stream::Out);
        let other = errors
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(other)
    })
}

/// The descriptors that the shim passes: the container's stdout and stderr, and the one that says "ready".
fn inherited() -> io::Result<[OwnedFd; 3]> {
    for fd in 3..=5 {
        if !Path::new(&format!("/proc/self/fd/{fd}")).exists() {
            return Err(io::Error::other(format!(
                "descriptor {fd} is not open; containerd's shim runs this"
            )));
        }
    }
    // SAFETY: the three are open, as just seen, and nothing else in this process knows of them: it has only begun.
    Ok([3, 4, 5].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// One of the container's outputs, and the beginning of a line whose end has not come.
struct Input {
    file: File,
    stream: Stream,
    buffer: Box<[u8; LONGEST]>,
    filled: usize,
}

impl Input {
    fn new(file: File, stream: Stream) -> Input {
        Input {
            file,
            stream,
            buffer: Box::new([0; LONGEST]),
            filled: 0,
        }
    }

    /// Reads once and writes the lines that are complete. False at the end of the stream.
    fn pass_on(&mut self, log: &Mutex<Log>, audience: &Audience) -> io::Result<bool> {
        let count = match self.file.read(&mut self.buffer[self.filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            result => result?,
        };
        if count > 0 {
            audience.tell(self.stream, &self.buffer[self.filled..self.filled + count]);
        }
        // A log that another thread left half-way is still a log.
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if count == 0 {
            // What is left of a line without its end is all there will be of it.
            if self.filled > 0 {
                log.entry(self.stream, &self.buffer[..self.filled], false);
                self.filled = 0;
            }
            log.flush();
            return Ok(false);
        }
        let end = self.filled + count;
        let mut start = 0;
        while let Some(length) = self.buffer[start..end]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            log.entry(self.stream, &self.buffer[start..start + length], true);
            start += length + 1;
        }
        self.buffer.copy_within(start..end, 0);
        self.filled = end - start;
        if self.filled == LONGEST {
            log.entry(self.stream, &self.buffer[..], false);
            self.filled = 0;
        }
        log.flush();
        Ok(true)
    }
}

/// The log file.
struct Log {
    path: PathBuf,
    /// `None` until it can be opened.
    file: Option<File>,
    size: u64,
    limit: u64,
    /// Entries that are not written yet, so that one read costs one write.
    pending: Vec<u8>,
    /// How many entries `pending` holds.
    entries: u64,
    /// Entries that could not be written and are not told of yet.
    dropped: u64,
}

impl Log {
    /// Opens the log. What fails is tried again with each entry.
    fn new(path: &Path, limit: u64) -> Log {
        let mut log = Log {
            path: path.to_owned(),
            file: None,
            size: 0,
            limit,
            pending: Vec::new(),
            entries: 0,
            dropped: 0,
        };
        if let Err(error) = log.file() {
            eprintln!("log-pipe: cannot open {}: {error}", path.display());
        }
        log
    }

    fn entry(&mut self, stream: Stream, text: &[u8], whole: bool) {
        self.append(stream, text, whole);
        self.entries += 1;
        if self.size + self.pending.len() as u64 >= self.limit {
            self.flush();
            // A log that cannot be rotated grows on.
            if self.size >= self.limit
                && let Err(error) = self.rotate()
            {
                eprintln!("log-pipe: cannot rotate {}: {error}", self.path.display());
            }
        }
    }

    fn append(&mut self, stream: Stream, text: &[u8], whole: bool) {
        let (time, name) = (Timestamp::now(), stream.name());
        let tag = if whole { 'F' } else { 'P' };
        // Writing to a Vec cannot fail.
        let _ = write!(self.pending, "{time:.9} {name} {tag} ");
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
    }

    /// Writes what is pending, or drops and counts it.
    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if self.dropped > 0 {
            let note = format!(
                "kernelet: {} entries of this log could not be written and are lost",
                self.dropped
            );
            let entries = std::mem::take(&mut self.pending);
            self.append(Stream::Err, note.as_bytes(), true);
            self.pending.extend(entries);
        }
        match self.write() {
            Ok(()) => {
                self.size += self.pending.len() as u64;
                self.dropped = 0;
            }
            Err(error) => {
                if self.dropped == 0 {
                    eprintln!("log-pipe: cannot write {}: {error}", self.path.display());
                }
                self.dropped += self.entries;
                // An entry may have been written in part. Without the file, or with a broken one, it is opened anew.
                if let Some(file) = self.file.take() {
                    let _ = file.set_len(self.size);
                }
            }
        }
        self.pending.clear();
        self.entries = 0;
    }

    fn write(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let written = self.file().and_then(|file| file.write_all(&pending));
        self.pending = pending;
        written
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                if let Some(parent) = self.path.parent() {
                    fs::create_dir_all(parent)?;
                }
                let file = File::options().create(true).append(true).open(&self.path)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    fn rotate(&mut self) -> io::Result<()> {
        // It is missing where an earlier try got so far and no further.
        if self.path.exists() {
            for number in (1..KEEP).rev() {
                ignore_missing(fs::rename(
                    rotated(&self.path, number),
                    rotated(&self.path, number + 1),
                ))?;
            }
            fs::rename(&self.path, rotated(&self.path, 1))?;
        }
        self.file = None;
        self.file().map(drop)
    }
}

/// Name of the `number`th newest full log of `path`, counted from 1.
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The logs of a container that are there, the oldest first.
pub fn files(path: &Path) -> Vec<PathBuf> {
    (1..=KEEP)
        .rev()
        .map(|number| rotated(path, number))
        .chain([path.to_owned()])
        .filter(|file| file.exists())
        .collect()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
