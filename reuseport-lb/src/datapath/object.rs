//! The object with the BPF programs, and how it is loaded.

use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::Level;

use super::{Error, offsets::Offsets};
use crate::config::BpfLogLevel;

/// The programs, built by `cargo xtask build-ebpf`; the build script says from where.
static OBJECT: &[u8] = include_bytes_aligned!(env!("REUSEPORT_LB_BPF_OBJECT_PATH"));

/// Loads the maps of the object, and leaves its programs to be loaded one by one.
pub(super) fn load(btf: Option<&Btf>, offsets: &Offsets, log: Option<BpfLogLevel>) -> Result<Ebpf, Error> {
    // A level of zero lets the verifier cut the log statements out.
    let level = log.map_or(0, |level| match level {
        BpfLogLevel::Error => Level::Error as u8,
        BpfLogLevel::Warn => Level::Warn as u8,
        BpfLogLevel::Info => Level::Info as u8,
        BpfLogLevel::Debug => Level::Debug as u8,
        BpfLogLevel::Trace => Level::Trace as u8,
    });
    let mut loader = EbpfLoader::new();
    loader.btf(btf).override_global(aya_log::LEVEL, &level, true);
    for (name, offset) in offsets.globals() {
        loader.override_global(name, offset, true);
    }
    loader.load(OBJECT).map_err(|error| Error::Load(Box::new(error)))
}
