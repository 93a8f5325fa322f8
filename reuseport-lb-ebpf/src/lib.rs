//! What the BPF programs and user space share.
#![no_std]

pub mod limits;
