//! hostPath volumes: what has to be at the path, and what is made there.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Why a hostPath cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostPathError {
    #[error("it does not exist")]
    Missing,
    #[error("it is not a {0}")]
    Other(&'static str),
    #[error("its type {0:?} is not known")]
    Type(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks that `path` is what the volume's `kind` says, and makes it where that says so.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), HostPathError> {
    let present = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        metadata => Some(metadata?),
    };
    type Test = fn(&Metadata) -> bool;
    let (name, test): (_, Test) = match kind {
        "" => ("", |_| true),
        "Directory" | "DirectoryOrCreate" => ("directory", Metadata::is_dir),
        "File" | "FileOrCreate" => ("file", Metadata::is_file),
        "Socket" => ("socket", |found| found.file_type().is_socket()),
        "CharDevice" => ("character device", |found| {
            found.file_type().is_char_device()
        }),
        "BlockDevice" => ("block device", |found| found.file_type().is_block_device()),
        other => return Err(HostPathError::Type(other.to_owned())),
    };
    match (present, kind) {
        (Some(found), _) if test(&found) => Ok(()),
        (Some(_), _) => Err(HostPathError::Other(name)),
        // Without a type nothing is checked, and container runtimes make the directory that they are to mount.
        (None, "" | "DirectoryOrCreate") => Ok(fs::create_dir_all(path)?),
        (None, "FileOrCreate") => {
            fs::File::options()
                .create_new(true)
                .write(true)
                .open(path)?;
            Ok(())
        }
        (None, _) => Err(HostPathError::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_checked_and_made_where_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        check(&path("untyped/deep"), "").unwrap();
        check(&path("directory"), "DirectoryOrCreate").unwrap();
        check(&path("file"), "FileOrCreate").unwrap();
        assert!(path("untyped/deep").is_dir() && path("directory").is_dir());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();

        let all = ["Directory", "File", "Socket", "CharDevice", "BlockDevice"];
        for (name, fits) in [
            ("directory", Some("Directory")),
            ("file", Some("File")),
            ("socket", Some("Socket")),
            ("missing", None),
        ] {
            for kind in all {
                let checked = check(&path(name), kind);
                assert_eq!(checked.is_ok(), fits == Some(kind), "{name} as {kind}");
            }
            check(&path(name), "").unwrap();
            let _ = fs::remove_dir(path("missing"));
        }
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        assert!(check(&path("file"), "DirectoryOrCreate").is_err());
        assert!(check(&path("directory"), "FileOrCreate").is_err());
        assert!(check(&path("file"), "Fancy").is_err());
    }
}
