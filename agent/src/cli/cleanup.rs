//! `kernelet cleanup`.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::CliError;
use crate::cleanup::{Found, Places, find, remove, remove_dangling};
use crate::config::{
    DEFAULT_BPF_DIR, DEFAULT_CGROUP_PARENT, DEFAULT_CONTAINERD, DEFAULT_ROOT_DIR, DEFAULT_RUN_DIR,
    socket_in,
};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The agent's run directory
    #[arg(long, env = "KERNELET_RUN_DIR", value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Its directory for pods, logs, images and credentials
    #[arg(long, env = "KERNELET_ROOT_DIR", value_name = "DIR", default_value = DEFAULT_ROOT_DIR)]
    root_dir: PathBuf,
    /// Where its programs and maps are pinned
    #[arg(long, env = "KERNELET_BPF_DIR", value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    bpf_dir: PathBuf,
    /// Path, below the root of every cgroup hierarchy, under which the pods' cgroups are, in `kubepods`
    #[arg(long, env = "KERNELET_CGROUP_PARENT", value_name = "PATH", default_value = DEFAULT_CGROUP_PARENT)]
    cgroup_parent: PathBuf,
    /// containerd's socket
    #[arg(long, env = "KERNELET_CONTAINERD", value_name = "SOCKET", default_value = DEFAULT_CONTAINERD)]
    containerd: PathBuf,
    /// Remove the data in the root directory, too: the node's identity, logs, images
    #[arg(long)]
    all: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Also when an agent runs, which may make some of it anew, or when containers cannot be listed, which may run on
    #[arg(long)]
    force: bool,
}

/// Why nothing, or not everything, was removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("the agent is running: it answers on {}; stop it first, or say --force", socket.display())]
    Running { socket: PathBuf },
    #[error(
        "containers may still run, and cannot be listed; the reason is above. Nothing was removed; --force removes the rest"
    )]
    ContainersUnknown,
    #[error("cannot tell where {} and the other directories are", run_dir.display())]
    Places {
        run_dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0} things could not be removed or looked at; the reasons are above")]
    Incomplete(usize),
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    if !args.dry_run && !args.force {
        refuse_beside_an_agent(&args.run_dir)?;
    }
    let places = Places {
        run_dir: args.run_dir.clone(),
        root_dir: args.root_dir.clone(),
        bpf_dir: args.bpf_dir.clone(),
        cgroup_parent: args.cgroup_parent.clone(),
        containerd: args.containerd.clone(),
        all: args.all,
    };
    let places = places.resolved().map_err(|source| CleanupError::Places {
        run_dir: args.run_dir.clone(),
        source,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let how = How {
        dry_run: args.dry_run,
        force: args.force,
    };
    let mut failures = runtime.block_on(clean(&places, how))?;
    if !args.dry_run {
        for link in [&args.run_dir, &args.root_dir] {
            if let Err(error) = remove_dangling(link) {
                failures += 1;
                eprintln!("kernelet: cannot remove link {}: {error}", link.display());
            }
        }
    }
    if !places.all && places.root_dir.exists() {
        let kept = places.root_dir.display();
        super::print(format!("kept {kept}: --all removes it, too\n"))?;
    }
    match failures {
        0 => Ok(()),
        failures => Err(CleanupError::Incomplete(failures).into()),
    }
}

fn refuse_beside_an_agent(run_dir: &std::path::Path) -> Result<(), CleanupError> {
    let socket = socket_in(run_dir);
    match UnixStream::connect(&socket) {
        Ok(_) => Err(CleanupError::Running { socket }),
        Err(_) => Ok(()),
    }
}

/// How to clean up.
#[derive(Clone, Copy, Debug)]
struct How {
    dry_run: bool,
    force: bool,
}

/// Says each thing that goes. Gives how many did not.
async fn clean(places: &Places, How { dry_run, force }: How) -> Result<usize, CliError> {
    let Found {
        residues,
        unseen,
        containers_unknown,
    } = find(places).await;
    let mut failures = unseen.len();
    for why in unseen {
        eprintln!("kernelet: cannot look at {why}");
    }
    if containers_unknown && !force && !dry_run {
        return Err(CleanupError::ContainersUnknown.into());
    }
    if residues.is_empty() {
        super::print("nothing to remove\n".to_owned())?;
    }
    for residue in residues {
        if dry_run {
            super::print(format!("would remove {residue}\n"))?;
            continue;
        }
        match remove(&residue, places).await {
            Ok(()) => super::print(format!("removed {residue}\n"))?,
            Err(why) => {
                failures += 1;
                eprintln!("kernelet: cannot remove {residue}: {why}");
            }
        }
    }
    Ok(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cleanup::testing::places_in;

    #[tokio::test]
    async fn nothing_goes_from_under_containers_that_may_run() {
        let home = tempfile::tempdir().unwrap();
        let places = places_in(home.path());
        std::fs::create_dir_all(places.run_dir.join("netns")).unwrap();
        let how = How {
            dry_run: false,
            force: false,
        };
        let error = clean(&places, how).await.unwrap_err();
        assert!(matches!(
            error,
            CliError::Cleanup(CleanupError::ContainersUnknown)
        ));
        assert!(places.run_dir.join("netns").exists());
    }

    #[test]
    fn a_running_agent_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refuse_beside_an_agent(dir.path()).is_ok());
        let _agent = std::os::unix::net::UnixListener::bind(socket_in(dir.path())).unwrap();
        assert!(refuse_beside_an_agent(dir.path()).is_err());
    }
}
