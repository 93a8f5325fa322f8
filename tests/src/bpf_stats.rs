//! How often the kernel ran the daemon's programs, by the kernel's own count.

use std::{collections::BTreeMap, env, fs, fs::File};

const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// `BPF_PROG_TYPE_SK_REUSEPORT` of `enum bpf_prog_type`, in the kernel's `include/uapi/linux/bpf.h`.
const SK_REUSEPORT: &str = "21";

/// Lets the kernel count program runs while this lives, and puts the parameter back afterwards.
///
/// The parameter is the whole machine's, so only one test at a time has this, whichever process it runs in.
#[derive(Debug)]
pub struct BpfStats {
    before: String,
    _lock: File,
}

impl BpfStats {
    /// Waits for its turn, and turns counting on. Programs must be loaded after this, or runs go missing.
    pub fn enable() -> Self {
        let path = env::temp_dir().join("reuseport-lb-test-bpf-stats.lock");
        let lock = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        lock.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let before = fs::read_to_string(SYSCTL).expect(SYSCTL);
        fs::write(SYSCTL, "1").expect(SYSCTL);
        Self { before, _lock: lock }
    }

    /// The runs of all `sk_reuseport` programs that a process has open.
    pub fn runs(&self, pid: u32) -> u64 {
        let folder = format!("/proc/{pid}/fdinfo");
        let mut programs = BTreeMap::new();
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")) {
            // A descriptor may have been closed since the folder was read.
            let Ok(text) = entry.and_then(|entry| fs::read_to_string(entry.path())) else { continue };
            let field =
                |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            let number = |name| field(name).and_then(|value| value.trim().parse::<u64>().ok());
            if field("prog_type") == Some(SK_REUSEPORT) {
                programs.insert(number("prog_id").expect("prog_id"), number("run_cnt").expect("run_cnt"));
            }
        }
        assert!(!programs.is_empty(), "process {pid} has no sk_reuseport program");
        programs.into_values().sum()
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        fs::write(SYSCTL, self.before.trim()).expect(SYSCTL);
    }
}
