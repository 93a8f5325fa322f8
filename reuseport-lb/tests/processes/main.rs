//! Real worker processes and real sockets, each test in a network namespace of its own. Needs root.

mod adopt;
mod demo;
mod http;
mod launch;
mod namespace;
mod stage;
