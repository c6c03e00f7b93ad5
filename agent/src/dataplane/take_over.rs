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
use std::sync::{Arc, Mutex, PoisonError};

use agent_ebpf::abi::{BackendId, Opened, maps as names};
use aya::Ebpf;
use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions};
use tracing::{info, warn};

use super::load::{LoadError, OPENED, PROGRAMS, link_of, links_of, remove};
use super::maps::{MapError, Maps};
use super::tc::LinkPrograms;
use super::versions::{Source, is_version, own_directory};
use super::{carry, links, tc, uplinks};
use crate::chain::chain;

/// Programs that are in the kernel and wait for their tables to be complete.
pub struct TakeOver {
    pub(super) programs: Arc<Mutex<Ebpf>>,
    pub(super) cgroup: File,
    pub(super) bpf_dir: PathBuf,
    pub(super) sources: Vec<Source>,
    pub(super) link_programs: LinkPrograms,
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
        self.attach_to_uplinks(&maps)?;
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

    fn attach(&self, which: Ends) -> Result<(), LoadError> {
        let others: Vec<PathBuf> = self
            .sources
            .iter()
            .map(|source| links_of(&self.bpf_dir.join(&source.directory)))
            .collect();
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, ends) in PROGRAMS.into_iter().filter(|(_, ends)| *ends == which) {
            let pin = link_of(&self.bpf_dir, name, ends);
            let elsewhere: Vec<PathBuf> = match ends {
                Ends::Sockets => Vec::new(),
                Ends::Nothing => others.iter().map(|links| links.join(name)).collect(),
            };
            let program = programs.program_mut(name);
            let program = program.ok_or(LoadError::Missing { name })?;
            links::attach(name, program, &self.cgroup, &pin, &elsewhere)?;
        }
        Ok(())
    }

    /// At the links where another version's programs translate.
    fn attach_to_uplinks(&self, maps: &Maps) -> Result<(), LoadError> {
        for index in maps.uplinks()?.into_keys() {
            let Some(name) = tc::link_name(index) else {
                continue;
            };
            for hook in uplinks::HOOKS {
                // Who keeps the uplinks tries it again. Until then the other version's program goes on there.
                if let Err(error) = self.link_programs.attach(hook, index, &name) {
                    warn!(
                        error = chain(&error),
                        "a link's programs are not replaced yet"
                    );
                }
            }
        }
        let failed = self.link_programs.take_over_xdp().err();
        if let Some(error) = failed {
            warn!(error = chain(&error), "the XDP program is not replaced yet");
        }
        Ok(())
    }

    fn carry(&self, maps: &mut Maps) -> Result<(), LoadError> {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Program::SchedClassifier(program)) = programs.program(OPENED) else {
            return Err(LoadError::Missing { name: OPENED });
        };
        let mut opened = |backend, connections| count_opened(program, backend, connections);
        for source in &self.sources {
            let from = self.bpf_dir.join(&source.directory);
            carry::clients(&from, source.carried, maps, &mut opened)?;
        }
        Ok(())
    }
}

/// Counts as many more connections that the backend has had. The kernel's own row of it may be counting meanwhile.
fn count_opened(
    program: &SchedClassifier,
    backend: BackendId,
    connections: u32,
) -> Result<(), MapError> {
    let order = Opened {
        backend,
        connections,
    };
    let run = program.test_run(TestRunOptions {
        data_in: Some(&order.to_frame()),
        ..Default::default()
    });
    run.map(drop).map_err(|error| MapError::Carry {
        map: names::STATS,
        source: io::Error::other(error),
    })
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
                let pin = link.file_name().unwrap_or_default().to_string_lossy();
                if !PROGRAMS.iter().any(known) && !tc::is_link_pin(&pin) {
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
