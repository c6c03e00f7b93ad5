//! `cargo xtask`: setup, build, demo, cluster, test, bench.

fn main() {}
