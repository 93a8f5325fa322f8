//! Where the running kernel keeps what the programs read of its structures.

use std::{path::Path, sync::LazyLock};

use btf_rs::{Btf, Member, Type};

/// The running kernel's types.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Offsets in bytes, each with the global of the programs that it overrides. An offset of 0 is an unknown one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    array_ptrs: u32,
    ack_backlog: u32,
    handshakes: u32,
    skc_net: u32,
    net_inum: u32,
    reuseport: u32,
    program: u32,
    aux: u32,
    program_id: u32,
}

impl Offsets {
    /// The offsets of the running kernel. Those that cannot be found are unknown, which turns off what needs them.
    ///
    /// They are looked up once: it takes some 25 MiB and most of the time that a start takes.
    pub(super) fn of_running_kernel() -> Self {
        static FOUND: LazyLock<Offsets> = LazyLock::new(Offsets::find);
        *FOUND
    }

    fn find() -> Self {
        let Ok(btf) = Btf::from_file(Path::new(KERNEL_BTF)) else { return Self::default() };
        let find = |structure, member| offset_of(&btf, structure, member).unwrap_or(0);
        let ack_backlog = find("sock", "sk_ack_backlog");
        // The programs read both at once.
        let adjacent = find("sock", "sk_max_ack_backlog") == ack_backlog + 4;
        Self {
            array_ptrs: find("reuseport_array", "ptrs"),
            ack_backlog: if adjacent { ack_backlog } else { 0 },
            handshakes: match (
                find("inet_connection_sock", "icsk_accept_queue"),
                offset_of(&btf, "request_sock_queue", "qlen"),
            ) {
                (0, _) | (_, None) => 0,
                (queue, Some(handshakes)) => queue + handshakes,
            },
            skc_net: find("sock_common", "skc_net"),
            net_inum: match (find("net", "ns"), find("ns_common", "inum")) {
                (0, _) | (_, 0) => 0,
                (namespace, inum) => namespace + inum,
            },
            reuseport: find("sock", "sk_reuseport_cb"),
            program: find("sock_reuseport", "prog"),
            aux: find("bpf_prog", "aux"),
            program_id: find("bpf_prog_aux", "id"),
        }
    }

    /// Each global's name and value.
    pub(super) const fn globals(&self) -> [(&'static str, &u32); 9] {
        let Self {
            array_ptrs,
            ack_backlog,
            handshakes,
            skc_net,
            net_inum,
            reuseport,
            program,
            aux,
            program_id,
        } = self;
        [
            ("OFFSET_ARRAY_PTRS", array_ptrs),
            ("OFFSET_ACK_BACKLOG", ack_backlog),
            ("OFFSET_HANDSHAKES", handshakes),
            ("OFFSET_SKC_NET", skc_net),
            ("OFFSET_NET_INUM", net_inum),
            ("OFFSET_REUSEPORT", reuseport),
            ("OFFSET_PROGRAM", program),
            ("OFFSET_AUX", aux),
            ("OFFSET_PROGRAM_ID", program_id),
        ]
    }

    /// Whether the programs can look at accept queues, and so see a stalled worker.
    pub(super) const fn sees_stalls(&self) -> bool {
        self.array_ptrs != 0 && self.ack_backlog != 0 && self.handshakes != 0
    }
}

/// The offset of a member in bytes, in the first structure of that name that has it.
fn offset_of(btf: &Btf, structure: &str, member: &str) -> Option<u32> {
    let found = btf.resolve_types_by_name(structure).ok()?;
    let bits = found.iter().find_map(|found| match found {
        Type::Struct(found) => offset_in_bits(btf, &found.members, member),
        _ => None,
    })?;
    Some(bits / u8::BITS)
}

/// The same among members, into structures and unions without a name.
fn offset_in_bits(btf: &Btf, members: &[Member], wanted: &str) -> Option<u32> {
    members.iter().find_map(|member| {
        let name = btf.resolve_name(member).ok()?;
        if name == wanted {
            return Some(member.bit_offset());
        }
        if !name.is_empty() {
            return None;
        }
        let (Type::Struct(inner) | Type::Union(inner)) = btf.resolve_chained_type(member).ok()? else {
            return None;
        };
        Some(member.bit_offset() + offset_in_bits(btf, &inner.members, wanted)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_all() {
        let offsets = Offsets::of_running_kernel();
        assert!(offsets.globals().iter().all(|(_, offset)| **offset > 0), "{offsets:?}");
        assert!(offsets.sees_stalls());
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let btf = Btf::from_file(KERNEL_BTF).unwrap();
        assert_eq!(offset_of(&btf, "sock", "no_such_member"), None);
        assert_eq!(offset_of(&btf, "no_such_structure", "x"), None);
        // Behind an unnamed union of `sock_common`, and known from the kernel's sources.
        assert_eq!(offset_of(&btf, "sock_common", "skc_dport"), Some(12));
    }
}
