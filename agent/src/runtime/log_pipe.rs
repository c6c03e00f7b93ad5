//! The process that writes one container's log: `kernelet log-pipe FILE`.
//!
//! containerd's shim starts it beside the container, with the container's output on descriptors 3 and 4 and a pipe on 5
//! that it closes when it is ready. It is no child of the agent, so logs outlive it. A thread and a fixed buffer for each
//! output, no more: there is one such process for each container.
//!
//! The log has the format of the Container Runtime Interface, `TIME STREAM F|P TEXT`, and is rotated by size: `0.log` is
//! written, `0.log.1` is the newest of the full ones.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

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

/// Runs the log writer; `args` are what follows `log-pipe` on the command line.
pub fn run(args: &[String]) -> ExitCode {
    let [log] = args else {
        eprintln!(
            "log-pipe: expected the log's file name and nothing else; containerd's shim runs this"
        );
        return ExitCode::from(2);
    };
    match pump(Path::new(log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log-pipe: cannot write {log}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pump(path: &Path) -> io::Result<()> {
    let [out, err, ready] = inherited()?;
    let log = Mutex::new(Log::open(path, ROTATE_AT)?);
    drop(ready);
    let copy = |fd, stream| {
        let mut input = Input::new(File::from(fd), stream);
        while input.pass_on(&log)? {}
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
    fn pass_on(&mut self, log: &Mutex<Log>) -> io::Result<bool> {
        let count = match self.file.read(&mut self.buffer[self.filled..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            result => result?,
        };
        // A log that another thread left half-way is still a log.
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if count == 0 {
            // What is left of a line without its end is all there will be of it.
            if self.filled > 0 {
                log.entry(self.stream, &self.buffer[..self.filled], false)?;
                self.filled = 0;
            }
            log.flush()?;
            return Ok(false);
        }
        let end = self.filled + count;
        let mut start = 0;
        while let Some(length) = self.buffer[start..end]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            log.entry(self.stream, &self.buffer[start..start + length], true)?;
            start += length + 1;
        }
        self.buffer.copy_within(start..end, 0);
        self.filled = end - start;
        if self.filled == LONGEST {
            log.entry(self.stream, &self.buffer[..], false)?;
            self.filled = 0;
        }
        log.flush()?;
        Ok(true)
    }
}

/// The log file.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    /// Entries that are not written yet, so that one read costs one write.
    pending: Vec<u8>,
}

impl Log {
    fn open(path: &Path, limit: u64) -> io::Result<Log> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Log {
            path: path.to_owned(),
            file,
            size,
            limit,
            pending: Vec::new(),
        })
    }

    fn entry(&mut self, stream: Stream, text: &[u8], whole: bool) -> io::Result<()> {
        let (time, name) = (Timestamp::now(), stream.name());
        let tag = if whole { 'F' } else { 'P' };
        write!(self.pending, "{time:.9} {name} {tag} ")?;
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
        if self.size + self.pending.len() as u64 >= self.limit {
            self.flush()?;
            self.rotate()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.size += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEEP).rev() {
            ignore_missing(fs::rename(
                rotated(&self.path, number),
                rotated(&self.path, number + 1),
            ))?;
        }
        ignore_missing(fs::rename(&self.path, rotated(&self.path, 1)))?;
        self.file = File::options().create(true).append(true).open(&self.path)?;
        self.size = 0;
        Ok(())
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
mod tests {
    use super::*;

    fn written(chunks: &[&[u8]], limit: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let log = Mutex::new(Log::open(&path, limit).unwrap());
        let (reader, writer) = io::pipe().unwrap();
        let mut input = Input::new(File::from(OwnedFd::from(reader)), Stream::Out);
        let mut writer = File::from(OwnedFd::from(writer));
        for chunk in chunks {
            writer.write_all(chunk).unwrap();
            assert!(input.pass_on(&log).unwrap());
        }
        drop(writer);
        assert!(!input.pass_on(&log).unwrap());
        (dir, path)
    }

    /// The entries without their times.
    fn entries(path: &Path) -> Vec<String> {
        fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| {
                let (time, rest) = line.split_once(' ').unwrap();
                assert!(time.parse::<Timestamp>().is_ok(), "{time}");
                assert_eq!(time.len(), "2026-01-02T03:04:05.123456789Z".len());
                rest.to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let (_dir, path) = written(&[b"one\ntw", b"o\n", b"three"], ROTATE_AT);
        assert_eq!(
            entries(&path),
            ["stdout F one", "stdout F two", "stdout P three"]
        );
    }

    #[test]
    fn a_long_line_becomes_several_entries() {
        let long = vec![b'x'; LONGEST];
        let (_dir, path) = written(&[&long, b"end\n"], ROTATE_AT);
        let entries = entries(&path);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].starts_with("stdout P xxx"));
        assert_eq!(entries[1], "stdout F end");
    }

    #[test]
    fn a_full_log_is_rotated_and_old_ones_go() {
        let chunks = vec![b"0123456789\n".as_slice(); 40];
        let (_dir, path) = written(&chunks, 100);
        assert_eq!(files(&path).len(), KEEP as usize + 1);
        assert!(!rotated(&path, KEEP + 1).exists());
        for full in 1..=KEEP {
            assert!(fs::metadata(rotated(&path, full)).unwrap().len() >= 100);
        }
    }
}
