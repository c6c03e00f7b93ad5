//! Files that hold secrets: written whole or not at all, and readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Owner,
    Everyone,
}

/// Puts `content` in place of `path` so that after a crash at any point either the old or the new content is there.
pub(super) fn write(path: &Path, content: &str, access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Owner => 0o600,
        Access::Everyone => 0o644,
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // One that a crash left may have another mode.
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if let Err(error) = write_new(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path)) {
        // Half a file is of no use, least of all on a full disk. The first error is the one to tell.
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn write_new(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// The file's text, None if there is no such file.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a directory, with its parents, that others may not enter. One that is there stays as it is.
pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
