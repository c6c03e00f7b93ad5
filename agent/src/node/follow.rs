//! Uses credentials that others renew: the files of a kubeconfig that is not of `kernelet join`'s making.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::Kubeconfig;
use tracing::{info, warn};

use super::credentials::{CredentialsError, NodeClient};

/// Between two looks at the files.
const EVERY: Duration = Duration::from_secs(60);

/// Looks from time to time whether the kubeconfig or a file that it names is another, and turns the client to it. Runs
/// until the task is dropped.
pub async fn follow(client: NodeClient) {
    let mut follower = Follower::new(client);
    loop {
        tokio::time::sleep(EVERY).await;
        match follower.pass().await {
            Ok(true) => info!("read the kubeconfig and its files again"),
            Ok(false) => {}
            // It may be half written.
            Err(error) => warn!(%error, "cannot use the new credentials; looking again"),
        }
    }
}

/// What tells a file from what was there before: modification time in seconds and nanoseconds, inode, size. `None` for
/// one that is not there.
type Stamp = (PathBuf, Option<(i64, i64, u64, u64)>);

pub(super) struct Follower {
    client: NodeClient,
    /// The files that are in use. Empty at first: they may have changed since the client was made.
    used: Vec<Stamp>,
}

impl Follower {
    pub(super) fn new(client: NodeClient) -> Self {
        let used = Vec::new();
        Self { client, used }
    }

    /// Whether there was something new. After an error it is tried again.
    pub(super) async fn pass(&mut self) -> Result<bool, CredentialsError> {
        // Before they are read: what changes meanwhile is seen the next time.
        let stamps = stamps(self.client.kubeconfig());
        if stamps == self.used {
            return Ok(false);
        }
        self.client.reload().await?;
        self.used = stamps;
        Ok(true)
    }
}

fn stamps(kubeconfig: &Path) -> Vec<Stamp> {
    let stamp = |path: PathBuf| {
        // Of what a link leads to: that is what is exchanged in a mounted Secret.
        let found = fs::metadata(&path).ok();
        let found = found.map(|it| (it.mtime(), it.mtime_nsec(), it.ino(), it.size()));
        (path, found)
    };
    let files = [kubeconfig.to_owned()].into_iter();
    files.chain(named(kubeconfig)).map(stamp).collect()
}

/// The files that a kubeconfig names. A token's is read anew by the client itself.
fn named(kubeconfig: &Path) -> Vec<PathBuf> {
    // One that cannot be read now is told of by the reload.
    let Ok(config) = Kubeconfig::read_from(kubeconfig) else {
        return Vec::new();
    };
    let authorities = config.clusters.into_iter().filter_map(|it| it.cluster);
    let authorities = authorities.filter_map(|it| it.certificate_authority);
    let users = config.auth_infos.into_iter().filter_map(|it| it.auth_info);
    let pairs = users.flat_map(|it| [it.client_certificate, it.client_key]);
    let files = authorities.chain(pairs.flatten());
    files.map(PathBuf::from).collect()
}
