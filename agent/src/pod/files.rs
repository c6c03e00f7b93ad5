//! Writing files that running containers see.

use std::fs;
use std::io;
use std::path::Path;

/// Writes a file, unless it says the same already: such a one is never empty in between.
pub(super) fn write_if_changed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    fs::write(path, bytes)
}
