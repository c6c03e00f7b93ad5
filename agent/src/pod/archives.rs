//! OCI archives dropped into a directory become images, those that are there at start and those that appear later.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::runtime::Runtime;

/// How long to wait for a runtime that is away.
const RETRY: Duration = Duration::from_secs(1);

/// Imports archives as they come. Sends to `imported` after each, and sets `first_done` when those of the start are in.
pub(super) async fn watch_directory(
    runtime: Arc<dyn Runtime>,
    directory: PathBuf,
    first_done: watch::Sender<bool>,
    imported: mpsc::Sender<()>,
) {
    let watched = fs::create_dir_all(&directory).and_then(|()| watch_of(&directory));
    // The watch stands before the directory is read, so nothing is missed in between.
    for archive in archives(&directory) {
        import(runtime.as_ref(), &archive).await;
    }
    first_done.send_replace(true);
    let mut events = match watched {
        Ok(events) => events,
        Err(error) => {
            let path = directory.display();
            tracing::warn!(%error, "{path} cannot be watched: archives put there need a restart of the agent");
            return;
        }
    };
    while let Ok(names) = next(&mut events).await {
        for name in names {
            import(runtime.as_ref(), &directory.join(name)).await;
        }
        if imported.send(()).await.is_err() {
            return;
        }
    }
}

async fn import(runtime: &dyn Runtime, archive: &Path) {
    loop {
        match runtime.import(archive).await {
            Ok(names) => {
                tracing::info!(archive = %archive.display(), images = names.join(", "), "imported")
            }
            Err(error) if error.is_unreachable() => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) => tracing::warn!(%error, "an archive was not imported"),
        }
        return;
    }
}

fn archives(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_archive(path))
        .collect();
    found.sort();
    found
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

fn watch_of(directory: &Path) -> io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(
        &fd,
        directory,
        WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO,
    )?;
    // SAFETY: the descriptor is owned, so it stays open and nobody else's for as long as it is registered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Names of the archives that were completed since.
async fn next(events: &mut AsyncFd<std::os::fd::OwnedFd>) -> io::Result<Vec<String>> {
    loop {
        let mut ready = events.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(ready.get_inner(), &mut buffer);
        let mut names = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event
                        .file_name()
                        .map(|name| name.to_string_lossy().into_owned());
                    names.extend(name.filter(|name| is_archive(Path::new(name))));
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        if !names.is_empty() {
            return Ok(names);
        }
    }
}
