//! Memory that was needed once.

/// Gives back to the kernel what has been freed.
///
/// Reading the kernel's types takes tens of MiB for a moment, and glibc keeps what lies between blocks that are still
/// in use. Other allocators give back by themselves.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called by any thread at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
