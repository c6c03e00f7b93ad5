//! How the agent's heap stays small: what a burst of work needed goes back to the system when that is over.

use std::time::Duration;

/// What is larger is mapped on its own and goes back when it is freed. glibc would raise this to the largest block that was
/// ever freed, and keep what is smaller.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: libc::c_int = 64 * 1024;
/// Free bytes that stay at the heap's end.
#[cfg(target_env = "gnu")]
const SLACK: libc::c_int = 128 * 1024;
/// Between two looks for pages that are free. Each takes about a millisecond.
const PERIOD: Duration = Duration::from_secs(10);

/// Has all threads allocate from one heap. glibc gives each its own, which costs megabytes and buys speed that an agent with
/// few threads does not need. To be called before there are threads.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, LARGE_BLOCK),
        (libc::M_TRIM_THRESHOLD, SLACK),
    ] {
        // SAFETY: it only sets a parameter of the allocator, and there is one thread yet.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free pages back, again and again: on its own glibc does so only at the heap's end.
pub async fn give_back() {
    loop {
        tokio::time::sleep(PERIOD).await;
        #[cfg(target_env = "gnu")]
        // SAFETY: the allocator takes its own lock; no memory in use is touched.
        unsafe {
            libc::malloc_trim(SLACK as usize);
        }
    }
}
