//! Compiles the introspection API and the program that holds pods' process namespaces, and embeds the BPF object.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["kernelet/v1/introspection.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .field_attribute("raw_key", r#"#[serde(serialize_with = "crate::cli::hex")]"#)
        .field_attribute(
            "raw_value",
            r#"#[serde(serialize_with = "crate::cli::hex")]"#,
        )
        .compile_fds(files)?;
    compile_holder()?;
    embed_bpf_object()?;
    Ok(())
}

/// Compiles `holder/main.rs`, which `pod::holder` includes: static, without a standard library, in a page of memory.
fn compile_holder() -> io::Result<()> {
    println!("cargo::rerun-if-changed=holder");
    let variable = |name| env::var(name).map_err(io::Error::other);
    let (rustc, target) = (variable("RUSTC")?, variable("TARGET")?);
    let output = Path::new(&variable("OUT_DIR")?).join("holder");
    let mut command = Command::new(rustc);
    command.args(["holder/main.rs", "--edition", "2024", "--target", &target]);
    command.arg("-o").arg(output);
    let link = "link-args=-nostdlib -static -Wl,--build-id=none,-z,norelro,-n";
    for option in [
        "panic=abort",
        "opt-level=s",
        "relocation-model=static",
        "strip=symbols",
        link,
    ] {
        command.args(["-C", option]);
    }
    if let Ok(linker) = variable("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    let status = command.status()?;
    let failed = || io::Error::other(format!("holder/main.rs was not compiled: {status}"));
    status.success().then_some(()).ok_or_else(failed)
}

/// Puts the BPF object where `dataplane::object` includes it, and sets `cfg(bpf_object)`. Without one the agent still
/// compiles, so that checks and unit tests need no BPF toolchain; loading then fails with the reason.
fn embed_bpf_object() -> io::Result<()> {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    println!("cargo::rerun-if-env-changed=KERNELET_BPF_OBJECT");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
    let object = env::var_os("KERNELET_BPF_OBJECT").map_or_else(
        || target.join("bpfel-unknown-none/release/kernelet-ebpf"),
        PathBuf::from,
    );
    if object.is_file() {
        println!("cargo::rerun-if-changed={}", object.display());
        let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
        fs::copy(&object, Path::new(&out).join("kernelet-ebpf"))?;
        println!("cargo::rustc-cfg=bpf_object");
    } else {
        // Watching a path that is not there would rebuild the agent each time; the folder is there, and changes when
        // the object comes.
        fs::create_dir_all(&target)?;
        println!("cargo::rerun-if-changed={}", target.display());
        println!(
            "cargo::warning=no BPF object at {}: this agent cannot load its programs; run `cargo xtask build`",
            object.display()
        );
    }
    Ok(())
}
