//! What of a packet is hashed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The bits of an address.
const V4_BITS: u8 = 32;
const V6_BITS: u8 = 128;

/// What of a packet is hashed. In text and in JSON: `flow`, `source`, `source/24`, `source/24,/64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum HashOn {
    /// Source and destination, address and port.
    #[default]
    Flow,
    /// The source address, or the network that it is in, so that a client keeps its worker over any source port.
    Source {
        /// How many leading bits of an IPv4 address count, 1 to 32.
        v4: u8,
        /// How many leading bits of an IPv6 address count, 1 to 128.
        v6: u8,
    },
}

impl HashOn {
    /// The whole source address.
    pub const SOURCE: Self = Self::Source { v4: V4_BITS, v6: V6_BITS };
}

/// As it is written.
impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Flow => f.write_str("flow"),
            Self::SOURCE => f.write_str("source"),
            Self::Source { v4, v6: V6_BITS } => write!(f, "source/{v4}"),
            Self::Source { v4, v6 } => write!(f, "source/{v4},/{v6}"),
        }
    }
}

impl From<HashOn> for String {
    fn from(hash_on: HashOn) -> Self {
        hash_on.to_string()
    }
}

impl TryFrom<String> for HashOn {
    type Error = InvalidHashOn;

    fn try_from(text: String) -> Result<Self, InvalidHashOn> {
        text.parse()
    }
}

impl FromStr for HashOn {
    type Err = InvalidHashOn;

    fn from_str(text: &str) -> Result<Self, InvalidHashOn> {
        if text == "flow" {
            return Ok(Self::Flow);
        }
        let prefixes = text.strip_prefix("source").ok_or(InvalidHashOn::Form)?;
        if prefixes.is_empty() {
            return Ok(Self::SOURCE);
        }
        let (v4, v6) = match prefixes.split_once(',') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (prefixes, None),
        };
        Ok(Self::Source {
            v4: prefix(v4, V4_BITS, "IPv4")?,
            v6: v6.map_or(Ok(V6_BITS), |v6| prefix(v6, V6_BITS, "IPv6"))?,
        })
    }
}

fn prefix(text: &str, bits: u8, family: &'static str) -> Result<u8, InvalidHashOn> {
    let digits = text.strip_prefix('/').ok_or(InvalidHashOn::Form)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidHashOn::Form);
    }
    match digits.parse() {
        // A prefix of no bits would send everybody to one worker.
        Ok(length) if (1..=bits).contains(&length) => Ok(length),
        _ => Err(InvalidHashOn::Prefix { family, bits }),
    }
}

/// A text that says nothing which can be hashed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHashOn {
    /// It is none of the forms.
    #[error(
        "write flow, source, or source with the prefix lengths for IPv4 and IPv6: source/24, source/24,/64"
    )]
    Form,
    /// A prefix is too short or too long.
    #[error("an {family} prefix has 1 to {bits} bits")]
    Prefix {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The most bits there are.
        bits: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_written_alike() {
        for (text, hash_on) in [
            ("flow", HashOn::Flow),
            ("source", HashOn::SOURCE),
            ("source/24", HashOn::Source { v4: 24, v6: 128 }),
            ("source/24,/64", HashOn::Source { v4: 24, v6: 64 }),
            ("source/32,/48", HashOn::Source { v4: 32, v6: 48 }),
            ("source/1,/1", HashOn::Source { v4: 1, v6: 1 }),
        ] {
            assert_eq!(text.parse(), Ok(hash_on));
            assert_eq!(hash_on.to_string(), text);
            assert_eq!(serde_json::to_value(hash_on).expect("JSON"), text);
            assert_eq!(serde_json::from_value::<HashOn>(text.into()).expect(text), hash_on);
        }
        // Of two ways to write it, one is given back.
        assert_eq!("source/32,/128".parse(), Ok(HashOn::SOURCE));
    }

    #[test]
    fn what_cannot_be_says_what_would_do() {
        for text in ["", "Flow", "flow/24", "sources", "source/", "source24", "source/+4", "source/24,64"] {
            assert_eq!(text.parse::<HashOn>(), Err(InvalidHashOn::Form), "{text}");
        }
        for text in ["source/24,", "source/24,/", "source,/64", "source/24,/64,/64", "source/-1", "/24"] {
            assert_eq!(text.parse::<HashOn>(), Err(InvalidHashOn::Form), "{text}");
        }
        for (text, why) in [
            ("source/0", "an IPv4 prefix has 1 to 32 bits"),
            ("source/33", "an IPv4 prefix has 1 to 32 bits"),
            ("source/999", "an IPv4 prefix has 1 to 32 bits"),
            ("source/24,/0", "an IPv6 prefix has 1 to 128 bits"),
            ("source/24,/129", "an IPv6 prefix has 1 to 128 bits"),
        ] {
            assert_eq!(text.parse::<HashOn>().expect_err(text).to_string(), why);
        }
    }
}
