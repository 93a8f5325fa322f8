//! Other versions of the program under test.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use reuseport_lb_ebpf::limits::MAX_MOVED;

use crate::binary;

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
    let program = std::process::Command::new("perl").args(["-0777", "-pe", &script]).arg(binary()).output();
    let program = program.expect("perl");
    assert!(program.status.success(), "{}", String::from_utf8_lossy(&program.stderr));
    write(path, &program.stdout);
}

/// Writes a program to `path` that runs these shell commands and then becomes the program under test.
pub fn wrapped(path: &Path, before: &str) {
    let script = format!("#!/bin/sh\n{before}\nexec '{}' \"$@\"\n", binary().display());
    write(path, script.as_bytes());
}

fn write(path: &Path, program: &[u8]) {
    fs::write(path, program)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
