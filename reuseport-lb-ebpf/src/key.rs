//! What a packet, or a connection that is being moved, says about its flow.

use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock, sk_reuseport_md},
    helpers::generated::bpf_skb_load_bytes_relative,
    programs::SkReuseportContext,
};
use reuseport_lb_ebpf::flow::{KeyMask, Tuple};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
const AF_INET: u32 = 2;

/// Offset of the source address in the IPv4 header; the destination address follows.
const IPV4_ADDRESSES: u32 = 12;
/// The same for IPv6.
const IPV6_ADDRESSES: u32 = 8;
/// Offset of the flags in the TCP header.
const TCP_FLAGS: usize = 13;
const TCP_SYN: u8 = 0x02;

/// Why the program runs.
#[derive(Clone, Copy)]
pub(crate) enum Arrival {
    /// A connection begins.
    New,
    /// A segment belongs to no connection and begins none. With SYN cookies it may complete a handshake, though.
    Stray,
    /// The listener of a connection was closed before it was accepted.
    Migrating(*const bpf_sock),
}

/// Why the program runs for this packet; none when the TCP header is not there.
#[inline(always)]
pub(crate) fn arrival(ctx: &SkReuseportContext) -> Option<Arrival> {
    // SAFETY: the union has this one field.
    let migrating = unsafe { (*ctx.md).__bindgen_anon_4.migrating_sk };
    if !migrating.is_null() {
        return Some(Arrival::Migrating(migrating));
    }
    let flags = transport::<u8>(ctx, TCP_FLAGS)?;
    if flags & TCP_SYN == 0 {
        return Some(Arrival::Stray);
    }
    Some(Arrival::New)
}

/// The keyed hash of what `mask` leaves of the connection's tuple, from the packet, or from the socket where there is no
/// packet.
#[inline(always)]
pub(crate) fn hash(ctx: &SkReuseportContext, arrival: Arrival, mask: &KeyMask, seed: u64) -> Option<u64> {
    if let Arrival::Migrating(sk) = arrival {
        return Some(socket_tuple(sk).hash(mask, seed));
    }
    let ports = transport::<[u16; 2]>(ctx, 0)?;
    let ports = u32::from(ports[0]) | u32::from(ports[1]) << 16;
    // The packet's family, not the socket's: an IPv4 client of `[::]` sends IPv4 packets.
    match ctx.eth_protocol() {
        ETH_P_IP => {
            let [source, destination] = network::<[u32; 2]>(ctx, IPV4_ADDRESSES)?;
            Some(Tuple::V4 { source, destination, ports }.hash(mask, seed))
        }
        ETH_P_IPV6 => {
            let mut hash = 0;
            hash_v6(ctx.md, ports, mask, seed, &mut hash).then_some(hash)
        }
        _ => None,
    }
}

/// The same for an IPv6 packet. A function of its own, since each family is in the way of the other's instructions.
#[inline(never)]
fn hash_v6(ctx: *mut sk_reuseport_md, ports: u32, mask: &KeyMask, seed: u64, hash: &mut u64) -> bool {
    let ctx = SkReuseportContext::new(ctx);
    let Some([source, destination]) = network::<[[u64; 2]; 2]>(&ctx, IPV6_ADDRESSES) else { return false };
    *hash = Tuple::V6 { source, destination, ports }.hash(mask, seed);
    true
}

/// The same tuple as the packets of the connection gave. In `bpf_sock`, "source" is this host.
#[inline(always)]
fn socket_tuple(sk: *const bpf_sock) -> Tuple {
    // SAFETY: the kernel handed `sk` to this run; the verifier turns each field into a read of the socket.
    unsafe {
        // `dst_port` is in network byte order already, `src_port` in the host's.
        let ports = u32::from((*sk).dst_port) | u32::from(((*sk).src_port as u16).to_be()) << 16;
        let family = (*sk).family;
        let remote = [(*sk).dst_ip6[0], (*sk).dst_ip6[1], (*sk).dst_ip6[2], (*sk).dst_ip6[3]];
        let local = [(*sk).src_ip6[0], (*sk).src_ip6[1], (*sk).src_ip6[2], (*sk).src_ip6[3]];
        if family == AF_INET {
            return Tuple::V4 { source: (*sk).dst_ip4, destination: (*sk).src_ip4, ports };
        }
        if remote[0] == 0 && remote[1] == 0 && remote[2] == 0xffff_u32.to_be() {
            return Tuple::V4 { source: remote[3], destination: local[3], ports };
        }
        Tuple::V6 { source: words(remote), destination: words(local), ports }
    }
}

/// Two words of four, as they stand in memory.
#[inline(always)]
fn words(address: [u32; 4]) -> [u64; 2] {
    [u64::from(address[0]) | u64::from(address[1]) << 32, u64::from(address[2]) | u64::from(address[3]) << 32]
}

/// Reads from the transport header, where the program's view of the packet begins.
#[inline(always)]
fn transport<T: Copy>(ctx: &SkReuseportContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie within the packet, and any of them make a `T`, which is made of bytes or 16-bit words here.
    // The kernel begins each header at an even address.
    Some(unsafe { (start as *const T).read() })
}

/// Reads from the network header, which lies before the program's view of the packet.
#[inline(always)]
fn network<T: Copy>(ctx: &SkReuseportContext, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes as many bytes as `T` has, or fails; any bytes make a `T`, which is an array of
    // integers here.
    unsafe {
        let failed = bpf_skb_load_bytes_relative(
            ctx.as_ptr(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            BPF_HDR_START_NET,
        ) != 0;
        (!failed).then(|| value.assume_init())
    }
}
