//! Prints as JSON what the kernel's verifier says of each BPF program. `cargo xtask verifier` compares it with the budget.

use std::io;

use anyhow::{Context as _, Result};
use reuseport_lb::datapath::verify;

fn main() -> Result<()> {
    let verified = verify().context("the programs cannot be verified")?;
    serde_json::to_writer(io::stdout().lock(), &verified).context("cannot write to standard output")
}
