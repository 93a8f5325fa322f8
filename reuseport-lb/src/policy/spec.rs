//! A policy together with how it is set.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{HashOn, Policy};

/// A policy together with how it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The policy.
    pub name: Policy,
    /// What it hashes; without a meaning for a policy that does not hash.
    #[serde(default)]
    pub hash_on: HashOn,
    /// How far above the mean a worker's load may be; none for no bound. Only `consistent-hash` has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_factor: Option<BalanceFactor>,
}

impl PolicySpec {
    /// The program that runs for it.
    pub const fn program(&self) -> Program {
        Program { policy: self.name, bounded: self.balance_factor.is_some() }
    }
}

impl From<Policy> for PolicySpec {
    /// The policy as it is unless somebody says otherwise.
    fn from(name: Policy) -> Self {
        Self { name, hash_on: HashOn::default(), balance_factor: None }
    }
}

/// Such as `consistent-hash on flow`, `consistent-hash on source/24, balance factor 1.25`, or `random`.
impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, hash_on, balance_factor } = self;
        write!(f, "{name}")?;
        if name.hashes() {
            write!(f, " on {hash_on}")?;
        }
        match balance_factor {
            Some(factor) => write!(f, ", balance factor {factor}"),
            None => Ok(()),
        }
    }
}

/// What is attached to a group: the program of a policy, or of its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// The policy; [`Policy::Kernel`] has no program.
    pub policy: Policy,
    /// Whether it is the variant that keeps every worker's load within a [`BalanceFactor`].
    pub bounded: bool,
}

impl Program {
    /// Whether it compares the load of workers, and so needs their connections counted.
    pub const fn compares_loads(self) -> bool {
        self.bounded || self.policy.compares_loads()
    }
}

impl From<Policy> for Program {
    fn from(policy: Policy) -> Self {
        Self { policy, bounded: false }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.policy, if self.bounded { " with a balance factor" } else { "" })
    }
}

/// How far above the mean a worker's load may be: 1.25 is a quarter. 1 to 100, in steps of a thousandth.
///
/// Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads", SODA 2018.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "f64", try_from = "f64")]
pub struct BalanceFactor(u32);

impl BalanceFactor {
    /// The smallest: with it, loads differ by one at most, and most flows leave their first choice.
    pub const MIN: Self = Self(1_000);
    /// The largest: beyond, there might as well be none.
    pub const MAX: Self = Self(100_000);

    /// The factor in thousandths.
    pub const fn thousandths(self) -> u32 {
        self.0
    }
}

impl From<BalanceFactor> for f64 {
    fn from(factor: BalanceFactor) -> Self {
        Self::from(factor.0) / 1_000.0
    }
}

impl TryFrom<f64> for BalanceFactor {
    type Error = InvalidBalanceFactor;

    fn try_from(factor: f64) -> Result<Self, InvalidBalanceFactor> {
        let thousandths = (factor * 1_000.0).round();
        // Not a number is not in the range either.
        if !(f64::from(Self::MIN.0)..=f64::from(Self::MAX.0)).contains(&thousandths) {
            return Err(InvalidBalanceFactor::Range);
        }
        if (factor * 1_000.0 - thousandths).abs() > 1e-6 {
            return Err(InvalidBalanceFactor::Decimals);
        }
        Ok(Self(thousandths as u32))
    }
}

impl FromStr for BalanceFactor {
    type Err = InvalidBalanceFactor;

    fn from_str(text: &str) -> Result<Self, InvalidBalanceFactor> {
        text.parse::<f64>().map_err(|_| InvalidBalanceFactor::Range)?.try_into()
    }
}

/// As it is written: `1.25`.
impl fmt::Display for BalanceFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}

/// A number that is no balance factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBalanceFactor {
    /// Not a number from 1 to 100.
    #[error("a balance factor is 1 to 100; 1.25 lets a worker hold a quarter more than the mean")]
    Range,
    /// Finer than it can be kept.
    #[error("a balance factor has three decimals at most")]
    Decimals,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_read_and_written_alike() {
        for (text, thousandths) in [("1", 1_000), ("1.25", 1_250), ("1.001", 1_001), ("2.5", 2_500)] {
            let factor: BalanceFactor = text.parse().expect(text);
            assert_eq!(factor.thousandths(), thousandths);
            assert_eq!(factor.to_string(), text);
            let json = serde_json::to_string(&factor).expect("JSON");
            assert_eq!(serde_json::from_str::<BalanceFactor>(&json).expect(&json), factor);
        }
        assert_eq!("100".parse(), Ok(BalanceFactor::MAX));
        assert_eq!(serde_json::from_str::<BalanceFactor>("2").expect("a whole number").thousandths(), 2_000);
    }

    #[test]
    fn every_thousandth_survives_the_way_through_a_float() {
        for thousandths in BalanceFactor::MIN.0..=BalanceFactor::MAX.0 {
            assert_eq!(f64::from(BalanceFactor(thousandths)).try_into(), Ok(BalanceFactor(thousandths)));
        }
    }

    #[test]
    fn what_is_no_factor_is_refused() {
        for text in ["", "0", "0.99", "-1.25", "100.001", "inf", "NaN", "125%", "1,25"] {
            assert_eq!(text.parse::<BalanceFactor>(), Err(InvalidBalanceFactor::Range), "{text}");
        }
        assert_eq!("1.2505".parse::<BalanceFactor>(), Err(InvalidBalanceFactor::Decimals));
    }

    #[test]
    fn a_policy_says_how_it_is_set_where_that_has_a_meaning() {
        let spec = |name, hash_on| PolicySpec { hash_on, ..PolicySpec::from(name) };
        assert_eq!(spec(Policy::Hash, HashOn::SOURCE).to_string(), "hash on source");
        assert_eq!(spec(Policy::Random, HashOn::SOURCE).to_string(), "random");
        let bounded = PolicySpec {
            balance_factor: "1.25".parse().ok(),
            ..spec(Policy::ConsistentHash, HashOn::Source { v4: 24, v6: 64 })
        };
        assert_eq!(bounded.to_string(), "consistent-hash on source/24,/64, balance factor 1.25");
        assert_eq!(
            serde_json::to_value(bounded).expect("JSON"),
            serde_json::json!({
                "name": "consistent-hash", "hash_on": "source/24,/64", "balance_factor": 1.25
            })
        );
    }
}
