//! How much tests with random input try.

use std::env;

use proptest::test_runner::Config;

/// So many cases as `PROPTEST_CASES` asks for, or else `cases`. Nothing is written into the source tree.
pub(crate) fn config(cases: u32) -> Config {
    let cases = match env::var("PROPTEST_CASES") {
        Ok(value) => value.parse().unwrap_or_else(|e| panic!("PROPTEST_CASES={value}: {e}")),
        Err(_) => cases,
    };
    Config { cases, failure_persistence: None, ..Config::default() }
}
