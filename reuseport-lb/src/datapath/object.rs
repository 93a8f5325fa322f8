//! The object with the BPF programs, and how it is loaded.

use std::{collections::BTreeMap, path::PathBuf};

use aya::{Ebpf, EbpfLoader, VerifierLogLevel, include_bytes_aligned};
use aya_log::Level;
use sha2::{Digest as _, Sha256};

use super::{Error, offsets::Offsets};
use crate::config::BpfLogLevel;

/// The programs, built by `cargo xtask build-ebpf`; the build script says from where.
static OBJECT: &[u8] = include_bytes_aligned!(env!("REUSEPORT_LB_BPF_OBJECT_PATH"));

/// The object with everything that is set in it when it is loaded.
pub(super) struct Object<'a> {
    pub(super) offsets: &'a Offsets,
    pub(super) log: Option<BpfLogLevel>,
}

impl Object<'_> {
    /// Makes the maps, but for those that are pinned already, and leaves the programs to be loaded one by one.
    pub(super) fn load(&self, pinned: &BTreeMap<String, PathBuf>) -> Result<Ebpf, Error> {
        self.load_with(pinned, VerifierLogLevel::default())
    }

    /// The same; with what the kernel is to tell of a program that it refuses.
    pub(super) fn load_with(
        &self,
        pinned: &BTreeMap<String, PathBuf>,
        log: VerifierLogLevel,
    ) -> Result<Ebpf, Error> {
        let level = self.level();
        let mut loader = EbpfLoader::new();
        // Nothing in the object depends on the kernel's types, and reading them takes 25 MiB.
        loader.btf(None).verifier_log_level(log).override_global(aya_log::LEVEL, &level, true);
        for (name, offset) in self.offsets.globals() {
            loader.override_global(name, offset, true);
        }
        for (name, path) in pinned {
            loader.map_pin_path(name, path);
        }
        loader.load(OBJECT).map_err(|error| Error::Load(Box::new(error)))
    }

    /// Tells programs apart: two with the same digest do the same.
    pub(super) fn digest(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(OBJECT);
        digest.update([self.level()]);
        for (_, offset) in self.offsets.globals() {
            digest.update(offset.to_ne_bytes());
        }
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A level of zero lets the verifier cut the log statements out.
    fn level(&self) -> u8 {
        self.log.map_or(0, |level| match level {
            BpfLogLevel::Error => Level::Error as u8,
            BpfLogLevel::Warn => Level::Warn as u8,
            BpfLogLevel::Info => Level::Info as u8,
            BpfLogLevel::Debug => Level::Debug as u8,
            BpfLogLevel::Trace => Level::Trace as u8,
        })
    }
}
