//! Who follows a container's output as it comes: each connects to a socket beside the log.
//!
//! A message is the stream's number (1 or 2), the length of what follows (4 bytes, big-endian), and that. The first one is
//! empty: it says that from now on nothing is missed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Stream;

/// Who does not read for so long is given up. Until then the container waits, as it would for a slow terminal.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many may follow at once.
const MOST: usize = 16;

/// Length of what stands before each message's text.
pub const HEAD: usize = 5;

const WELCOME: [u8; HEAD] = [1, 0, 0, 0, 0];

/// The listeners to one container.
pub(super) struct Audience {
    socket: PathBuf,
    followers: Mutex<Vec<UnixStream>>,
}

impl Audience {
    /// Lets followers of the log come in. Where that fails there are none, and the log is written all the same.
    pub(super) fn open(log: &Path) -> Arc<Audience> {
        let audience = Arc::new(Audience {
            socket: socket(log),
            followers: Mutex::default(),
        });
        let joining = audience.clone();
        let opened = listen(&audience.socket).and_then(|listener| {
            std::thread::Builder::new()
                .name("followers".into())
                .spawn(move || joining.accept(&listener))
        });
        if let Err(error) = opened {
            let socket = audience.socket.display();
            eprintln!("log-pipe: nobody can attach at {socket}: {error}");
        }
        audience
    }

    fn accept(&self, listener: &UnixListener) {
        // The process ends with the container's output, and this thread with it.
        while let Ok((mut stream, _)) = listener.accept() {
            if stream.set_write_timeout(Some(PATIENCE)).is_err() {
                continue;
            }
            let mut followers = self.lock();
            if followers.len() < MOST && stream.write_all(&WELCOME).is_ok() {
                followers.push(stream);
            }
        }
    }

    /// Passes on what the container wrote.
    pub(super) fn tell(&self, stream: Stream, text: &[u8]) {
        let mut followers = self.lock();
        if followers.is_empty() {
            return;
        }
        let number = match stream {
            Stream::Out => 1,
            Stream::Err => 2,
        };
        let mut message = Vec::with_capacity(HEAD + text.len());
        message.push(number);
        // It is at most what one read gives.
        message.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend_from_slice(text);
        followers.retain_mut(|follower| follower.write_all(&message).is_ok());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Audience {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

/// The socket of a log's followers.
pub fn socket(log: &Path) -> PathBuf {
    log.with_extension("attach")
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    by_short_name(path, |name| UnixListener::bind(name))
}

/// Calls `with` with another name of the same file: a socket's address has room for 107 bytes, which a log's path is often
/// longer than.
pub fn by_short_name<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(directory)?;
    let short = format!("/proc/self/fd/{}", directory.as_raw_fd());
    with(&Path::new(&short).join(name))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_follower_hears_what_comes_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("long-name/".repeat(20)).join("0.log");
        let audience = Audience::open(&log);
        audience.tell(Stream::Out, b"before");
        let mut follower = by_short_name(&socket(&log), |name| UnixStream::connect(name)).unwrap();
        let mut welcome = [0; HEAD];
        follower.read_exact(&mut welcome).unwrap();
        assert_eq!(welcome, WELCOME);
        audience.tell(Stream::Out, b"one");
        audience.tell(Stream::Err, b"two");
        audience.lock().clear();
        let mut heard = Vec::new();
        follower.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"\x01\0\0\0\x03one\x02\0\0\0\x03two");
        // Who has gone is no trouble to the others.
        audience.tell(Stream::Out, b"after");
    }
}
