//! Values as the user writes them, each refused with a line that says what would do.

use std::{
    num::IntErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::Group;

use crate::{
    config::{MAX_WORKERS, UserGroup},
    group::{WEIGHT_RANGE, WorkerId},
    policy::{BalanceFactor, HashOn, InvalidBalanceFactor, InvalidHashOn, Policy, PolicySpec},
};

pub use address::{listen_address, metrics_address};

mod address;

/// A value that the user gave and that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

impl InvalidValue {
    /// With what would do.
    pub(super) const fn new(why: String) -> Self {
        Self(why)
    }
}

/// The longest duration that is taken. Deadlines are instants, and an instant has an end; nobody waits for a year.
pub const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest name of a group. Names become file names and HTTP paths.
const MAX_GROUP_NAME_BYTES: usize = 64;

/// Parses a network namespace into the path that opens it: a process id, a path, or a name that `ip netns` knows.
///
/// # Errors
///
/// The empty text. Whether there is such a namespace is seen when it is opened.
pub fn netns(text: &str) -> Result<PathBuf, InvalidValue> {
    if text.is_empty() {
        return Err(InvalidValue(
            "a network namespace is a process id, a path, or a name of `ip netns`".into(),
        ));
    }
    if text.contains('/') {
        return Ok(text.into());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(["/proc", text, "ns/net"].iter().collect());
    }
    Ok(Path::new("/run/netns").join(text))
}

/// Parses the number of workers, 1 to [`MAX_WORKERS`].
///
/// # Errors
///
/// Anything else; the line names the limit.
pub fn workers(text: &str) -> Result<u16, InvalidValue> {
    integer(text, 1, MAX_WORKERS)
        .map_err(|why| InvalidValue(format!("{why}: a group has 1 to 1,024 workers")))
}

/// Parses a worker's number.
///
/// # Errors
///
/// What cannot be the number of a worker.
pub fn worker_id(text: &str) -> Result<WorkerId, InvalidValue> {
    integer(text, 0, MAX_WORKERS - 1)
        .map(WorkerId)
        .map_err(|why| InvalidValue(format!("{why}: a worker has a number, as `status` shows it")))
}

/// Parses a worker's weight, 1 to 256.
///
/// # Errors
///
/// Anything else. For 0 the line points to `drain`.
pub fn weight(text: &str) -> Result<u16, InvalidValue> {
    let (low, high) = (*WEIGHT_RANGE.start(), *WEIGHT_RANGE.end());
    integer(text, low, high).map_err(|why| {
        let hint = if text.trim_start_matches('0').is_empty() && !text.is_empty() {
            "; to take a worker out, use drain"
        } else {
            ""
        };
        InvalidValue(format!("{why}: a weight is {low} to {high}{hint}"))
    })
}

fn integer(text: &str, low: u16, high: u16) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n < low => Err("too low".into()),
        Ok(n) if n > high => Err("too high".into()),
        Ok(n) => Ok(n),
        Err(e) if *e.kind() == IntErrorKind::PosOverflow => Err("too high".into()),
        Err(_) => Err("not a whole number".into()),
    }
}

/// Parses a seed of the flow hash: decimal, or hexadecimal after `0x`.
///
/// # Errors
///
/// Whatever is not a number of 64 bits.
pub fn hash_seed(text: &str) -> Result<u64, InvalidValue> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| InvalidValue("not a number of 64 bits, decimal or hexadecimal after 0x".into()))
}

/// Parses a duration: `30s`, `500ms`, `1m 30s`; a number alone means seconds.
///
/// # Errors
///
/// What humantime does not understand, and more than [`MAX_DURATION`].
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => humantime::parse_duration(text).map_err(|_| {
            InvalidValue("not a duration: write 30s, 500ms, 2m, or a number of seconds".into())
        })?,
    };
    if duration > MAX_DURATION {
        return Err(InvalidValue("more than a year".into()));
    }
    Ok(duration)
}

/// Parses a duration that is not zero.
///
/// # Errors
///
/// As [`duration`], and zero.
pub fn positive_duration(text: &str) -> Result<Duration, InvalidValue> {
    match duration(text)? {
        Duration::ZERO => Err(InvalidValue("more than nothing is needed: write 30s, 500ms, 2m".into())),
        duration => Ok(duration),
    }
}

/// Parses a group's name: 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first.
///
/// # Errors
///
/// Anything else, since names become names of files and parts of HTTP paths.
pub fn group_name(text: &str) -> Result<String, InvalidValue> {
    let bytes = text.as_bytes();
    let fits = (1..=MAX_GROUP_NAME_BYTES).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b));
    if !fits {
        return Err(InvalidValue(
            "a name is 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first".into(),
        ));
    }
    Ok(text.to_owned())
}

/// Looks a group of users up, by its name or its number.
///
/// # Errors
///
/// There is no such group on this host.
pub fn user_group(text: &str) -> Result<UserGroup, InvalidValue> {
    let known = |id| UserGroup { name: text.to_owned(), id };
    if let Ok(id) = text.parse() {
        return Ok(known(id));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(known(group.gid.as_raw())),
        Ok(None) => {
            Err(InvalidValue("this host has no such group; `getent group` lists those it has".into()))
        }
        Err(error) => Err(InvalidValue(format!("groups cannot be looked up: {error}"))),
    }
}

/// Parses what a policy hashes: `flow`, `source`, or `source` with prefix lengths, `source/24,/64`.
///
/// # Errors
///
/// Anything else; the line names the forms, or the limits of a prefix.
pub fn hash_on(text: &str) -> Result<HashOn, InvalidValue> {
    text.parse().map_err(|why: InvalidHashOn| InvalidValue(why.to_string()))
}

/// Parses a balance factor: 1 to 100, with three decimals at most.
///
/// # Errors
///
/// Anything else.
pub fn balance_factor(text: &str) -> Result<BalanceFactor, InvalidValue> {
    text.parse().map_err(|why: InvalidBalanceFactor| InvalidValue(why.to_string()))
}

/// Puts a policy and how it is set together.
///
/// # Errors
///
/// The policy does not hash, and yet `hash_on` was given; or it bounds no load, and `balance_factor` was given.
pub fn policy(
    name: Policy,
    hash_on: Option<HashOn>,
    balance_factor: Option<BalanceFactor>,
) -> Result<PolicySpec, UnfitSetting> {
    if hash_on.is_some() && !name.hashes() {
        return Err(UnfitSetting::HashOn(name));
    }
    if balance_factor.is_some() && !name.balances() {
        return Err(UnfitSetting::BalanceFactor(name));
    }
    Ok(PolicySpec { name, hash_on: hash_on.unwrap_or_default(), balance_factor })
}

/// A setting that has no meaning for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitSetting {
    /// The policy does not hash.
    #[error("policy {0} does not hash, so hash-on has no meaning; it goes with hash and consistent-hash")]
    HashOn(Policy),
    /// The policy bounds no load.
    #[error("policy {0} bounds no load, so balance-factor has no meaning; it goes with consistent-hash")]
    BalanceFactor(Policy),
}

impl UnfitSetting {
    /// The setting.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::HashOn(_) => "hash-on",
            Self::BalanceFactor(_) => "balance-factor",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_namespace_is_a_process_a_path_or_a_name() {
        let path = |text| netns(text).map(|path| path.display().to_string());
        assert_eq!(path("123").as_deref(), Ok("/proc/123/ns/net"));
        assert_eq!(path("/run/docker/netns/a1").as_deref(), Ok("/run/docker/netns/a1"));
        assert_eq!(path("./123").as_deref(), Ok("./123"));
        assert_eq!(path("blue").as_deref(), Ok("/run/netns/blue"));
        assert!(path("").is_err());
    }

    #[test]
    fn numbers_keep_their_limits() {
        assert_eq!(workers("1"), Ok(1));
        assert_eq!(workers("1024"), Ok(1024));
        for text in ["0", "1025", "5000", "99999999999", "-1", "two", ""] {
            let why = workers(text).expect_err(text).to_string();
            assert!(why.contains("1 to 1,024"), "{text}: {why}");
        }
        assert_eq!(worker_id("0"), Ok(WorkerId(0)));
        for text in ["-1", "1024", "two", ""] {
            worker_id(text).expect_err(text);
        }
        assert_eq!(weight("1"), Ok(1));
        assert_eq!(weight("256"), Ok(256));
        assert_eq!(weight("0").map_err(|e| e.to_string().contains("use drain")), Err(true));
        assert_eq!(weight("257").map_err(|e| e.to_string().contains("use drain")), Err(false));
        assert_eq!(weight("").map_err(|e| e.to_string().contains("use drain")), Err(false));
        assert_eq!(hash_seed("0xff"), Ok(255));
        assert_eq!(hash_seed("18446744073709551615"), Ok(u64::MAX));
        assert!(hash_seed("ff").is_err());
    }

    #[test]
    fn durations_have_units_or_mean_seconds() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        for text in ["", "-1", "soon", "18446744073709551615", "2years"] {
            duration(text).expect_err(text);
        }
    }

    #[test]
    fn user_groups_are_looked_up() {
        assert_eq!(user_group("root").map(|group| group.id), Ok(0));
        assert_eq!(user_group("54321").map(|group| group.id), Ok(54_321));
        for text in ["", "no-such-group-here", "-1", "4294967296"] {
            user_group(text).expect_err(text);
        }
    }

    #[test]
    fn group_names_are_safe_as_file_names() {
        for name in ["default", "a", "web-1.eu_2", &"x".repeat(64)] {
            assert_eq!(group_name(name).as_deref(), Ok(name));
        }
        for name in ["", "-", ".", "..", ".x", "-x", "a/b", "a b", "ä", &"x".repeat(65)] {
            group_name(name).expect_err(name);
        }
    }

    #[test]
    fn settings_go_only_with_policies_that_have_them() {
        let source = Some(HashOn::SOURCE);
        let factor = "1.25".parse().ok();
        assert_eq!(policy(Policy::Random, None, None), Ok(Policy::Random.into()));
        assert_eq!(
            policy(Policy::ConsistentHash, source, factor),
            Ok(PolicySpec { name: Policy::ConsistentHash, hash_on: HashOn::SOURCE, balance_factor: factor })
        );
        policy(Policy::Hash, source, None).expect("hash hashes");
        policy(Policy::LeastLoaded, Some(HashOn::Flow), None).expect_err("least-loaded does not hash");
        policy(Policy::Hash, None, factor).expect_err("hash has no next choice");
        policy(Policy::LeastLoaded, None, factor).expect_err("least-loaded balances as it is");
    }
}
