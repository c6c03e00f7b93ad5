//! Programs from Debian's packages, unpacked below `target`: never installed over another, and no service is started.

use std::path::{Path, PathBuf};

use crate::cluster::target;
use crate::command::{command, output};
use crate::{Result, host};

/// The program at `path` in the package, fetched at the first call.
pub fn program(package: &str, path: &str) -> Result<PathBuf> {
    let directory = target().join("debian").join(package);
    let program = directory.join(path);
    if !program.exists() {
        fetch(package, &directory)?;
    }
    Ok(program)
}

/// Unpacks a package of Debian's archive into a directory.
pub(crate) fn fetch(package: &str, directory: &Path) -> Result<()> {
    let archive = directory.join("archive");
    host::create_dir(&archive)?;
    // apt leaves its privileges behind where it can, and then may not write here.
    let line = format!("apt-get -q -o APT::Sandbox::User=root download {package}");
    output(command(&line).current_dir(&archive))?;
    for entry in std::fs::read_dir(&archive).into_iter().flatten().flatten() {
        output(command("dpkg -x").arg(entry.path()).arg(directory))?;
    }
    Ok(())
}
