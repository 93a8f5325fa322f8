//! What the BPF programs of `reuseport-lb` and user space share: sizes, names, the layout of the maps, and the
//! decisions that can be made without a kernel.
//!
//! # Compatibility
//!
//! Pinned maps may be older than the daemon that finds them. [`LAYOUT_VERSION`] changes whenever the type of a map
//! changes its size or meaning, so that a daemon takes over only what it understands. The types are `#[repr(C)]`,
//! hold plain integers without padding, and state their size and alignment at compile time.

#![no_std]
#![forbid(unsafe_code)]

pub mod balance;
pub mod flow;
pub mod health;
pub mod least_loaded;
pub mod limits;
pub mod listen;
pub mod names;
pub mod outcome;
pub mod sums;
pub mod tables;
pub mod worker;

/// The version of everything in this crate that both sides must agree on.
pub const LAYOUT_VERSION: u32 = 3;

/// States at compile time that a shared type has the given size and alignment and no padding.
///
/// A type without padding is as large as its fields together, so the fields are named once more: a new field
/// breaks this until somebody has thought about it.
macro_rules! assert_layout {
    ($type:ident, size: $size:expr, align: $align:expr, fields: { $($field:ident: $field_type:ty),+ $(,)? }) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            assert!(align_of::<$type>() == $align);
            assert!(0 $(+ size_of::<$field_type>())+ == $size);
            let fields = |value: $type| {
                let $type { $($field),+ } = value;
                let _: ($(&$field_type,)+) = ($(&$field,)+);
            };
            let _ = fields;
        };
    };
}
pub(crate) use assert_layout;
