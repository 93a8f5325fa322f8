//! Other versions of the program under test.

use std::path::Path;

use reuseport_lb_ebpf::limits::MAX_MOVED;

use crate::{binary, program};

/// The version that [`next_version`] makes.
pub const NEXT: &str = "0.1.9";

/// Writes a program to `path` that is the one under test, but for its version, and for the map `MOVED`, which has half
/// as many entries. So it has other BPF programs, and one of the maps of before does not fit.
pub fn next_version(path: &Path) {
    let this = env!("CARGO_PKG_VERSION");
    assert_eq!(this.len(), NEXT.len());
    // In BTF, the number of entries is that of an array: a `struct btf_type` without name and size, of kind 3, and a
    // `struct btf_array`, whose last word it is.
    let bytes = |word: u32| word.to_le_bytes().map(|byte| format!("\\x{byte:02x}")).concat();
    let array = format!("({}.{{8}}){}", [0, 3 << 24, 0].map(bytes).concat(), bytes(MAX_MOVED));
    let halved = bytes(MAX_MOVED / 2);
    let script = format!(
        r#"my $version = s/\Q{this}\E/{NEXT}/g; my $map = s/{array}/$1{halved}/gs;
        die "version $version times, map $map times" unless $version && $map == 1;"#
    );
    let output = std::process::Command::new("perl").args(["-0777", "-pe", &script]).arg(binary()).output();
    let output = output.expect("perl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program::write(path, &output.stdout);
}

/// Writes a program to `path` that runs these shell commands and then becomes the program under test.
pub fn wrapped(path: &Path, before: &str) {
    let script = format!("#!/bin/sh\n{before}\nexec '{}' \"$@\"\n", binary().display());
    program::write(path, script.as_bytes());
}
