//! The harness of the integration tests: everything that a test needs to say what it means in a few lines.
//!
//! Each test runs in a network namespace of its own, on a thread of its own, with a runtime that never leaves that
//! thread ([`in_netns`]). Processes and sockets that a test makes are therefore in its namespace, so that all tests
//! may use the same addresses and ports, at the same time, beside whatever else the machine serves.
//!
//! * [`Netns`]: a namespace; a second one joined by a veth pair is a second host.
//! * [`Daemon`]: the program under test, started, asked, told, stopped, and what it left behind.
//! * [`Client`] and [`Connection`]: a client whose every connection names its source.
//! * [`Load`]: connections without pause, each of them accounted for.
//! * [`chaos`]: everything at once, in an order that a seed gives.
//! * [`BpfStats`]: the kernel's own count of program runs.

pub mod arrivals;
pub mod bpf_stats;
pub mod chance;
pub mod chaos;
pub mod client;
pub mod command;
pub mod daemon;
pub mod http;
pub mod listeners;
pub mod load;
pub mod machine;
pub mod netns;
pub mod privileges;
pub mod process;
pub mod program;
pub mod scripts;
pub mod server;
pub mod status;
pub mod steered;
pub mod terminal;
pub mod ticks;
pub mod version;
pub mod wait;

pub use arrivals::{Arrival, Arrivals};
pub use bpf_stats::BpfStats;
pub use client::{Answer, Client, Connection, fixed_sources, hold, sources_reaching, workers_of};
pub use command::{Output, run};
pub use daemon::{Daemon, Launch, binary};
pub use load::{Account, Load, connections};
pub use machine::Machine;
pub use netns::{Netns, in_netns, in_netns_for};
pub use process::pin_thread;
pub use server::Server;
pub use status::GroupExt;
pub use terminal::Terminal;
pub use ticks::Ticks;
pub use wait::{PATIENCE, eventually, within};
