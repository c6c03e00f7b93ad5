//! What kind of cluster is wanted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{binaries, target};
use crate::Result;
use crate::links::Links;
use crate::sweep::{Residue, sweep};

/// What kind of cluster is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// First part of every name that the cluster gives. At most six characters, for the sake of link names.
    pub prefix: String,
    /// Third byte of the nodes' addresses, `172.30.N.0/24`: clusters that run at the same time need different ones.
    pub subnet: u8,
    pub workers: u8,
    /// Where its data, logs and kubeconfig go.
    pub directory: PathBuf,
    /// Where `kernelet` and `kernelet-control-plane` are.
    pub binaries: PathBuf,
    /// OCI archives that every worker is given.
    pub images: Vec<PathBuf>,
    /// More arguments for `kernelet-control-plane`.
    pub control_plane_args: Vec<String>,
    /// More arguments for `kernelet run`.
    pub agent_args: Vec<String>,
    /// Of what nodes, pods and services have addresses. The nodes' IPv6 addresses are in `fd72:30:N::/64`.
    #[serde(default)]
    pub families: Families,
    /// So many of the workers, the last ones, are on a second link, `172.31.N.0/24`, behind a router.
    #[serde(default)]
    pub far: u8,
}

/// The families of a cluster's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    #[default]
    V4,
    /// IPv4 first.
    Dual,
    /// Nothing is told of the machines' IPv4 addresses.
    V6,
}

impl Families {
    /// Where pods and services get their addresses, as `kernelet-control-plane` is told.
    pub(super) fn ranges(self) -> &'static [&'static str] {
        match self {
            Families::V4 => &[],
            Families::Dual => &[
                "--pod-cidr",
                "10.244.0.0/16,fd00:10:244::/48",
                "--service-cidr",
                "10.96.0.0/12,fd00:10:96::/108",
            ],
            Families::V6 => &[
                "--pod-cidr",
                "fd00:10:244::/48",
                "--service-cidr",
                "fd00:10:96::/108",
            ],
        }
    }
}

impl Spec {
    /// A cluster for a scenario, with the sample application's images.
    pub fn scenario(prefix: &str, subnet: u8, workers: u8) -> Spec {
        Spec {
            prefix: prefix.to_owned(),
            subnet,
            workers,
            directory: target().join("scenarios").join(prefix),
            binaries: binaries(),
            images: ["frontend", "backend"]
                .map(|name| target().join(format!("images/{name}.tar")))
                .into(),
            control_plane_args: Vec::new(),
            agent_args: Vec::new(),
            families: Families::V4,
            far: 0,
        }
    }

    pub(super) fn links(&self) -> Links<'_> {
        Links {
            prefix: &self.prefix,
            subnet: self.subnet,
            with_v6: self.families != Families::V4,
        }
    }

    pub(super) fn run_directory(&self) -> PathBuf {
        Path::new("/run").join(&self.prefix)
    }

    pub(super) fn bpf_directory(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.prefix)
    }

    pub(super) fn sweep(&self) -> Result<()> {
        let directories = [
            self.run_directory(),
            self.bpf_directory(),
            self.directory.clone(),
        ];
        sweep(&Residue {
            prefix: &self.prefix,
            directories: &directories,
        })
    }
}
