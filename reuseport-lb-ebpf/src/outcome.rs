//! What becomes of a run of a selection program.

/// Declares the outcomes once: variant, metric name, help.
macro_rules! outcomes {
    ($($(#[$doc:meta])+ $variant:ident => $name:literal, $help:literal;)+) => {
        /// What became of one run of a selection program. Each run counts in exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[$doc])+ $variant,)+
        }

        impl Outcome {
            /// All outcomes, in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One line for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }

            /// The place of the outcome's counter.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

outcomes! {
    /// The policy's choice among the eligible workers took the connection.
    Selected => "selected", "The policy's choice took the connection";
    /// A later choice took it.
    Retried => "retried", "A later choice took the connection, since an earlier one's socket was gone";
    /// A waiting connection moved to another worker.
    Migrated => "migrated", "A waiting connection moved from a closed socket to another worker";
    /// The segment opens no connection.
    Stray => "stray", "The segment opens no connection; it was steered, but is no selection";
    /// The kernel picked, since no worker is eligible.
    FallbackNoWorker => "fallback_no_worker", "The kernel's hash picked, since no worker is eligible";
    /// The kernel picked, since the packet could not be read.
    FallbackUnreadable => "fallback_unreadable", "The kernel's hash picked, since the packet could not be read";
    /// The kernel picked, since it refused all of the program's choices.
    FallbackRefused => "fallback_refused", "The kernel's hash picked, since the sockets of all choices were gone";
    /// Refused, as the user asked for.
    Dropped => "dropped", "Refused, since the user drained every worker";
}

/// The counters of all outcomes, one copy a CPU.
pub type Outcomes = [u64; Outcome::COUNT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_place_and_name() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), index);
            assert!(!Outcome::ALL[..index].iter().any(|other| other.name() == outcome.name()));
        }
    }
}
