//! Compiles the protobuf schema that `api::protobuf` reads bodies by.

use std::{env, fs, path::Path};

const PACKAGES: &[&str] = &[
    "k8s.io/api/apps/v1.proto",
    "k8s.io/api/authentication/v1.proto",
    "k8s.io/api/authorization/v1.proto",
    "k8s.io/api/autoscaling/v1.proto",
    "k8s.io/api/autoscaling/v2.proto",
    "k8s.io/api/batch/v1.proto",
    "k8s.io/api/certificates/v1.proto",
    "k8s.io/api/coordination/v1.proto",
    "k8s.io/api/core/v1.proto",
    "k8s.io/api/discovery/v1.proto",
    "k8s.io/api/events/v1.proto",
    "k8s.io/api/networking/v1.proto",
    "k8s.io/api/node/v1.proto",
    "k8s.io/api/policy/v1.proto",
    "k8s.io/api/rbac/v1.proto",
    "k8s.io/api/scheduling/v1.proto",
    "k8s.io/api/storage/v1.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true);
    compiler.open_files(PACKAGES)?;
    let out = env::var("OUT_DIR")?;
    fs::write(
        Path::new(&out).join("kubernetes.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    Ok(())
}
