//! `kernelet-control-plane`: arguments to parts, nothing else.

fn main() {}
