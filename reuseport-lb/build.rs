//! Tells the library which BPF object to embed: the committed one, or the one that a task has just built.

use std::{env, path::PathBuf};

const VARIABLE: &str = "REUSEPORT_LB_BPF_OBJECT";

fn main() {
    let committed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("bpf/programs.bpf.o");
    let object = env::var_os(VARIABLE).map_or_else(committed, PathBuf::from);
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed={}", object.display());
    println!("cargo:rustc-env={VARIABLE}_PATH={}", object.display());
}
