//! One program for all decoders, as each would be as large again: `DECODER` says which one is fed.

#![no_main]

use std::sync::LazyLock;

use kernelet_control_plane::api::decoders::{self, Decoder};

static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let name = std::env::var("DECODER").unwrap_or_default();
    let found = decoders::ALL.iter().find(|(known, _)| *known == name);
    found.map_or_else(
        || panic!("DECODER={name} names none of them"),
        |(_, decoder)| *decoder,
    )
});

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    if let Err(finding) = DECODER(text) {
        panic!("{finding}");
    }
});
