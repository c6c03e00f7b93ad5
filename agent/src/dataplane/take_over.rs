//! From another version's programs to ours, without a moment in which none of them runs.
//!
//! ```text
//! 1. our programs that end the rows of sockets are attached beside the other version's
//! 2. rows of open sockets and of clients are carried over
//! 3. each link is told to run our program
//! 4. rows that came meanwhile are carried over
//! 5. the other versions' pins go
//! ```
//!
//! Each step can be repeated: a crash anywhere is made up for by the next start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use tracing::info;

use super::load::{LoadError, PROGRAMS, link_of, links_of, remove};
use super::maps::Maps;
use super::versions::{Source, is_version, own_directory};
use super::{carry, links};

/// Programs that are in the kernel and wait for their tables to be complete.
pub struct TakeOver {
    pub(super) programs: Ebpf,
    pub(super) cgroup: File,
    pub(super) bpf_dir: PathBuf,
    pub(super) sources: Vec<Source>,
}

impl TakeOver {
    /// Makes our programs serve in the place of those of other versions. Call it when our tables hold the first full
    /// state; when it fails, call it again.
    pub fn run(&mut self) -> Result<(), LoadError> {
        let own = self.bpf_dir.join(own_directory());
        let mut maps = Maps::open(&own)?;
        self.attach(Ends::Sockets)?;
        self.carry(&mut maps)?;
        self.attach(Ends::Nothing)?;
        self.carry(&mut maps)?;
        remove_others(&self.bpf_dir)?;
        let from: Vec<&str> = self
            .sources
            .iter()
            .map(|source| source.directory.as_str())
            .collect();
        info!(
            from = from.join(", "),
            "the service programs have taken over"
        );
        Ok(())
    }

    fn attach(&mut self, which: Ends) -> Result<(), LoadError> {
        let others: Vec<PathBuf> = self
            .sources
            .iter()
            .map(|source| links_of(&self.bpf_dir.join(&source.directory)))
            .collect();
        for (name, ends) in PROGRAMS.into_iter().filter(|(_, ends)| *ends == which) {
            let pin = link_of(&self.bpf_dir, name, ends);
            let elsewhere: Vec<PathBuf> = match ends {
                Ends::Sockets => Vec::new(),
                Ends::Nothing => others.iter().map(|links| links.join(name)).collect(),
            };
            let program = self.programs.program_mut(name);
            let program = program.ok_or(LoadError::Missing { name })?;
            links::attach(name, program, &self.cgroup, &pin, &elsewhere)?;
        }
        Ok(())
    }

    fn carry(&self, maps: &mut Maps) -> Result<(), LoadError> {
        for source in &self.sources {
            let from = self.bpf_dir.join(&source.directory);
            carry::clients(&from, source.carried, maps)?;
        }
        Ok(())
    }
}

/// What a program takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// The rows of sockets, in its own version's maps: the programs of two versions run side by side.
    Sockets,
    Nothing,
}

/// Removes the pins of other versions, and links to programs that this version does not have. In each directory the maps
/// go first: while the programs run that end its sockets' rows, it may be read again.
fn remove_others(bpf_dir: &Path) -> Result<(), LoadError> {
    let keep = own_directory();
    for path in entries(bpf_dir)? {
        let name = path.file_name().unwrap_or_default();
        if name == "links" {
            for link in entries(&path)? {
                let known = |(name, _): &(&str, Ends)| link.ends_with(name);
                if !PROGRAMS.iter().any(known) {
                    fs::remove_file(&link).map_err(at(&link))?;
                }
            }
        } else if name != keep.as_str() && is_version(&name.to_string_lossy()) {
            for pin in entries(&path)?.iter().filter(|path| !path.is_dir()) {
                fs::remove_file(pin).map_err(at(pin))?;
            }
            remove(&path)?;
        }
    }
    Ok(())
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let entries = fs::read_dir(path).map_err(at(path))?;
    entries
        .map(|entry| Ok(entry.map_err(at(path))?.path()))
        .collect()
}

fn at(path: &Path) -> impl Fn(io::Error) -> LoadError + use<> {
    let path = path.to_owned();
    move |source| LoadError::Path {
        path: path.clone(),
        source,
    }
}
