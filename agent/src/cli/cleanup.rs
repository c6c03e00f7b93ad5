//! `kernelet cleanup`: what the agent leaves in the kernel on purpose, so that services go on while it is away, is removed
//! when a person says so.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::CliError;
use crate::config::{DEFAULT_BPF_DIR, DEFAULT_RUN_DIR, socket_in};
use crate::dataplane::{self, LoadError};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The agent's run directory
    #[arg(long, env = "KERNELET_RUN_DIR", value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Where its programs and maps are pinned
    #[arg(long, env = "KERNELET_BPF_DIR", value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    bpf_dir: PathBuf,
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("the agent is running: it answers on {}; stop it first", socket.display())]
    Running { socket: PathBuf },
    #[error("cannot look into {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Remove(#[from] LoadError),
}

pub(super) fn run(args: &Args) -> Result<String, CliError> {
    Ok(clean(args)?)
}

fn clean(Args { run_dir, bpf_dir }: &Args) -> Result<String, CleanupError> {
    let socket = socket_in(run_dir);
    if UnixStream::connect(&socket).is_ok() {
        return Err(CleanupError::Running { socket });
    }
    let there = bpf_dir.try_exists().map_err(|source| CleanupError::Look {
        path: bpf_dir.clone(),
        source,
    })?;
    if !there {
        return Ok(format!(
            "nothing to remove: there is no {}\n",
            bpf_dir.display()
        ));
    }
    dataplane::remove(bpf_dir)?;
    Ok(format!(
        "removed the programs and maps in {}\n",
        bpf_dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_agent_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args {
            run_dir: dir.path().to_owned(),
            bpf_dir: dir.path().join("bpf"),
        };
        assert!(clean(&args).unwrap().starts_with("nothing to remove"));
        let _agent = std::os::unix::net::UnixListener::bind(socket_in(dir.path())).unwrap();
        assert!(matches!(clean(&args), Err(CleanupError::Running { .. })));
    }
}
