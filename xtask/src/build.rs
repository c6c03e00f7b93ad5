//! The BPF object, the programs, the sample images.

use anyhow::{Context, Result, anyhow};
use kernelet_tests::cluster::target;
use kernelet_tests::image::Image;

use crate::bpf::Toolchain;
use crate::shell::{self, cargo, run_quietly, spinner};

/// The samples: each is one static program in an image of the same name.
const SAMPLES: [&str; 2] = ["frontend", "backend"];
const SAMPLE_TAG: &str = "v0.0.1";

/// Builds everything that a cluster is made of.
pub fn run() -> Result<()> {
    run_beside(|| Ok(()))
}

/// The same, with `other` work done while the programs are built: linking them keeps one processor busy for minutes. `other`
/// finds the BPF object there.
pub fn run_beside(other: impl FnOnce() -> Result<()>) -> Result<()> {
    bpf_object()?;
    images()?;
    std::thread::scope(|scope| {
        let building = scope.spawn(programs);
        let done = other();
        let built = building.join();
        built.map_err(|_| anyhow!("building the programs panicked"))??;
        done
    })
}

fn programs() -> Result<()> {
    shell::run(cargo().args([
        "build",
        "--release",
        "--package",
        "kernelet",
        "--package",
        "kernelet-control-plane",
    ]))
    .context("building the programs")
}

/// Compiles the BPF programs, which the agent carries.
pub fn bpf_object() -> Result<()> {
    let toolchain =
        Toolchain::find().context("there is no toolchain for BPF: run `cargo xtask setup`")?;
    let bar = spinner("compiling the BPF programs");
    toolchain.compile()?;
    bar.finish_and_clear();
    Ok(())
}

/// Builds the samples and packs each as an OCI archive, `target/images/NAME.tar`.
fn images() -> Result<()> {
    let directory = target().join("images");
    let scratch = directory.join("build");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let bar = spinner("building the sample images");
    run_quietly(
        cargo()
            .args([
                "build",
                "--release",
                "--package",
                "frontend-backend",
                "--bins",
                "--target",
                &host,
            ])
            .env("CARGO_TARGET_DIR", &scratch)
            .env(
                "RUSTFLAGS",
                "-C target-feature=+crt-static -C strip=symbols",
            ),
    )?;
    for name in SAMPLES {
        let program = scratch.join(&host).join("release").join(name);
        let bytes =
            std::fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        let image = Image::of_program(
            &format!("docker.io/library/{name}:{SAMPLE_TAG}"),
            name,
            &bytes,
        )?;
        let archive = directory.join(format!("{name}.tar"));
        std::fs::write(&archive, image.archive()?)
            .with_context(|| format!("writing {}", archive.display()))?;
    }
    bar.finish_and_clear();
    Ok(())
}
