//! `reuseport-lb`: steers the connections of a `SO_REUSEPORT` group to the worker that a policy picks.
//!
//! The modules follow the way of a command: [`cli`] talks to [`control`], which hands a request to the
//! [`daemon`]; the daemon changes the [`group`], [`plan`] compares what is with what should be, and [`datapath`]
//! makes the kernel do it. `docs/ARCHITECTURE.md` walks through it.

#![deny(unsafe_code)]

pub mod adopt;
pub mod chain;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
#[expect(unsafe_code, reason = "shares memory with the programs; each block says why it holds")]
pub mod datapath;
pub mod demo;
pub mod doctor;
#[cfg(test)]
mod fuzz;
pub mod group;
pub mod handover;
mod moment;
pub mod netns;
pub mod plan;
pub mod policy;
pub mod privileges;
mod shared;
pub mod state;
pub mod stats;
pub mod worker;
