//! The toolchain that compiles Rust to BPF, and compiling with it.
//!
//! The BPF target's `core` is not among rustup's components, so there are two ways: nightly builds it from `rust-src`,
//! or Debian's security suite has it prebuilt, which is unpacked below `target/` and never installed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use kernelet_tests::cluster::{find_program, target};

use crate::shell::{cargo, run_quietly, spinner};

/// What [`install`] does, for people.
pub const INSTALL_SUMMARY: &str = "117 MB from Debian, unpacked below target/bpf-toolchain, and bpf-linker built there from crates.io";

const LINKER_VERSION: &str = "0.13.0";
const DEBIAN_PACKAGES: [&str; 5] = [
    "rustc-web",
    "libstd-rust-web-1.96",
    "libstd-rust-web-dev",
    "libstd-rust-web-dev-bpf",
    "libllvm22",
];
const TARGET: &str = "bpfel-unknown-none";

/// A toolchain that can compile the BPF programs.
pub enum Toolchain {
    /// rustup's nightly with `rust-src`, and a `bpf-linker` on the path.
    Nightly,
    /// Debian's packages, unpacked in a directory, with `bpf-linker` built beside them.
    Unpacked(PathBuf),
}

impl Toolchain {
    /// What is there, if anything.
    pub fn find() -> Option<Toolchain> {
        let unpacked = unpacked();
        if rustc(&unpacked).exists() && linker(&unpacked).exists() {
            return Some(Toolchain::Unpacked(unpacked));
        }
        let sysroot = Command::new("rustc")
            .args(["+nightly", "--print", "sysroot"])
            .output()
            .ok()?;
        let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
        let source = sysroot.join("lib/rustlib/src/rust/library/core");
        (sysroot.is_absolute() && source.exists() && find_program("bpf-linker").is_some())
            .then_some(Toolchain::Nightly)
    }

    /// Compiles the BPF programs; gives the object's path.
    pub fn compile(&self) -> Result<PathBuf> {
        let output = target().join("bpf");
        let mut command = cargo();
        match self {
            Toolchain::Nightly => {
                command = Command::new("cargo");
                command.current_dir(crate::shell::workspace());
                command.args(["+nightly", "build", "-Z", "build-std=core"]);
            }
            Toolchain::Unpacked(directory) => {
                command
                    .arg("build")
                    .env("RUSTC", rustc(directory))
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("LD_LIBRARY_PATH", libraries(directory))
                    .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker(directory));
            }
        }
        // The outer cargo's choice of toolchain is not the inner one's.
        command
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS");
        command
            .args([
                "--release",
                "--package",
                "agent-ebpf",
                "--bin",
                "kernelet-ebpf",
                "--features",
                "bpf",
            ])
            .args(["--target", TARGET])
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_TARGET_DIR", &output);
        run_quietly(&mut command).context("compiling the BPF programs")?;
        Ok(output.join(TARGET).join("release/kernelet-ebpf"))
    }
}

fn unpacked() -> PathBuf {
    target().join("bpf-toolchain")
}

fn rustc(directory: &std::path::Path) -> PathBuf {
    directory.join("root/usr/bin/rustc")
}

fn linker(directory: &std::path::Path) -> PathBuf {
    directory.join("linker/bin/bpf-linker")
}

fn libraries(directory: &std::path::Path) -> PathBuf {
    directory.join("root/usr/lib/x86_64-linux-gnu")
}

/// Fetches and unpacks Debian's BPF `core` and its compiler, and builds bpf-linker against the same LLVM.
pub fn install() -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "Debian has a prebuilt BPF core for x86_64 only: on {} install rustup's nightly with rust-src, and bpf-linker",
            std::env::consts::ARCH
        );
    }
    let directory = unpacked();
    let packages = directory.join("packages");
    std::fs::create_dir_all(&packages).with_context(|| format!("making {}", packages.display()))?;

    let bar = spinner("fetching the BPF toolchain (117 MB)");
    run_quietly(Command::new("apt-get").args(["update", "-q"]))?;
    run_quietly(
        Command::new("apt-get")
            .arg("download")
            .args(DEBIAN_PACKAGES)
            .current_dir(&packages),
    )
    .context(
        "these packages are in Debian 12's security suite: is it among the machine's sources?",
    )?;
    for package in std::fs::read_dir(&packages)? {
        run_quietly(
            Command::new("dpkg")
                .arg("-x")
                .arg(package?.path())
                .arg(directory.join("root")),
        )?;
    }
    std::fs::remove_dir_all(&packages)?;

    let bar_linker = {
        bar.finish_and_clear();
        spinner(format!("building bpf-linker {LINKER_VERSION}"))
    };
    let llvm = directory.join("llvm/lib");
    std::fs::create_dir_all(&llvm)?;
    let link = llvm.join("libLLVM.so");
    if !link.exists() {
        std::os::unix::fs::symlink(libraries(&directory).join("libLLVM.so.22.1"), &link)?;
    }
    let scratch = directory.join("linker-target");
    run_quietly(
        cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
            ])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(directory.join("linker"))
            .env("LLVM_PREFIX", directory.join("llvm"))
            .env("LD_LIBRARY_PATH", libraries(&directory))
            .env("CARGO_TARGET_DIR", &scratch),
    )?;
    std::fs::remove_dir_all(&scratch)?;
    bar_linker.finish_and_clear();
    Ok(())
}
