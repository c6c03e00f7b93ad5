//! The BPF object that this binary carries.

/// Bytes aligned as an ELF parser wants them.
#[cfg(bpf_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kernelet-ebpf"));

/// The object; `None` in a build made without the BPF toolchain.
pub(super) fn object() -> Option<&'static [u8]> {
    #[cfg(bpf_object)]
    return Some(OBJECT);
    #[cfg(not(bpf_object))]
    None
}
