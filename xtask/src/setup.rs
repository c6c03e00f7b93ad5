//! What building and running needs on a fresh Debian 12, installed once.

use std::process::Command;

use anyhow::{Context, Result, bail};
use kernelet_tests::cluster::find_program;
use kernelet_tests::host::cgroup2_mount;
use kernelet_tests::{helm, kernels, python};

use crate::bpf::{self, Toolchain};
use crate::shell::{run_quietly, spinner};

/// A Debian package and what it is for. `program`, where given, may have come from elsewhere.
struct Package {
    name: &'static str,
    program: Option<&'static str>,
    purpose: &'static str,
}

const PACKAGES: &[Package] = &[
    package(
        "protobuf-compiler",
        Some("protoc"),
        "compiles the protocols of containerd, CRI and etcd",
    ),
    package("libprotobuf-dev", None, "the standard protocol definitions"),
    package("containerd", Some("containerd"), "runs the containers"),
    package("runc", Some("runc"), "containerd's runtime"),
    package(
        "iproute2",
        Some("ip"),
        "makes the network namespaces of a cluster",
    ),
    package("kubernetes-client", Some("kubectl"), "the user's tool"),
    package(
        "etcd-server",
        Some("etcd"),
        "the other store; tests compare with it",
    ),
    package(
        "openssl",
        Some("openssl"),
        "makes the certificates that tests refuse",
    ),
    package(
        "dbus-daemon",
        Some("dbus-daemon"),
        "the bus on which a test announces shutdowns",
    ),
    package("g++", Some("c++"), "compiles the fuzzer"),
    package(
        "busybox-static",
        Some("busybox"),
        "the tests' smallest container",
    ),
    package(
        "python3-venv",
        None,
        "makes room for the Python client and the API's fuzzer",
    ),
    package(
        "iptables",
        Some("iptables"),
        "the peer that benchmarks compare with; counts rules in the demo",
    ),
    package(
        "nftables",
        Some("nft"),
        "the peer that benchmarks compare with; counts rules in the demo",
    ),
    package(
        "qemu-system-x86",
        Some("qemu-system-x86_64"),
        "boots the other kernels that the programs are tried on",
    ),
    package("cpio", Some("cpio"), "packs what such a kernel runs"),
    package(
        "xz-utils",
        Some("xz"),
        "unpacks the modules of such a kernel",
    ),
    package(
        "binutils",
        Some("strip"),
        "makes the agent small for such a kernel",
    ),
];

const fn package(
    name: &'static str,
    program: Option<&'static str>,
    purpose: &'static str,
) -> Package {
    Package {
        name,
        program,
        purpose,
    }
}

impl Package {
    fn installed(&self) -> bool {
        match self.program {
            Some(program) => find_program(program).is_some(),
            None => Command::new("dpkg-query")
                .args(["-W", "-f", "${Status}", self.name])
                .output()
                .is_ok_and(|output| {
                    output.status.success() && output.stdout.starts_with(b"install ok installed")
                }),
        }
    }
}

/// Installs what is missing, saying it first. With `check`, only says it, and fails if anything is missing.
pub fn run(check: bool) -> Result<()> {
    let missing: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| !package.installed())
        .collect();
    let toolchain = Toolchain::find();
    let clients = python::find("python").is_some();
    let helms = helm::find().is_some();
    let kernel = kernel_obstacle();
    let kernels: Vec<&str> = kernels::SERIES
        .into_iter()
        .filter(|series| kernels::find(series).is_none())
        .collect();

    for package in &missing {
        println!(
            "missing: Debian package {} ({})",
            package.name, package.purpose
        );
    }
    if toolchain.is_none() {
        println!(
            "missing: a Rust toolchain for BPF ({})",
            bpf::INSTALL_SUMMARY
        );
    }
    if !clients {
        println!("missing: clients of the API from the Python package index, which tests use");
    }
    if !helms {
        println!("missing: helm, which a test uses");
    }
    for series in &kernels {
        println!("missing: Debian's Linux {series}, which a test boots");
    }
    if let Some(obstacle) = &kernel {
        println!("missing: {obstacle}");
    }
    if check {
        let tests = kernels.is_empty() && clients && helms;
        let all_there = missing.is_empty() && toolchain.is_some() && tests;
        if all_there && kernel.is_none() {
            println!("everything is here");
            return Ok(());
        }
        bail!("run `cargo xtask setup` to install what is missing");
    }

    if !missing.is_empty() {
        install(&missing)?;
    }
    if toolchain.is_none() {
        bpf::install()?;
    }
    if !kernels.is_empty() && missing.is_empty() {
        // Of an old list the archive may not have the kernel any more.
        run_quietly(Command::new("apt-get").args(["update", "-q"]))?;
    }
    for series in kernels {
        // Nothing but a test needs it, and the test says so.
        if let Err(error) = kernels::fetch(series) {
            println!("Debian's Linux {series} could not be fetched: {error}");
        }
    }
    if !clients && let Err(error) = python::install() {
        // As above.
        println!("clients from the Python package index could not be fetched: {error}");
    }
    if !helms && let Err(error) = helm::install() {
        // As above.
        println!("helm could not be fetched: {error}");
    }
    if let Some(obstacle) = kernel {
        bail!("{obstacle}");
    }
    Ok(())
}

fn install(packages: &[&Package]) -> Result<()> {
    let apt = find_program("apt-get").context(
        "this is no Debian: install the packages above, or what they are called here, then run this again",
    )?;
    let bar = spinner("installing Debian packages");
    run_quietly(Command::new(&apt).args(["update", "-q"]))?;
    run_quietly(
        Command::new(&apt)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages.iter().map(|package| package.name)),
    )
    .context("needs root: run `cargo xtask setup` as root, or install the packages above")?;
    bar.finish_and_clear();
    Ok(())
}

/// What of the kernel is missing, which nothing can install.
fn kernel_obstacle() -> Option<String> {
    cgroup2_mount().err().map(|error| error.to_string())
}
