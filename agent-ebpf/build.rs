//! Asks the BPF linker for type information: socket storage cannot be created without it, and `bpftool` shows map rows
//! by field name with it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        println!("cargo::rustc-link-arg-bin=kernelet-ebpf=--btf");
    }
}
