//! Which programs pick among listening sockets, and whose they are.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    io::{self, Read as _},
};

use aya::{
    Btf,
    maps::{Map, MapData, ReusePortSockArray},
    programs::Iter,
};
use reuseport_lb_ebpf::{limits::MAX_WORKERS, listen::Attached, names};

use super::{Error, kernel::program, object::Object, offsets::Offsets, programs::PROGRAMS};
use crate::netns::Netns;

/// A program that picks among the sockets of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its id; 0 for a classic one, which has none.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// The ids of its maps.
    maps: Vec<u32>,
    /// The processes that hold it, by name and id: whoever has loaded it and still runs.
    pub holders: Vec<(String, u32)>,
}

impl Attachment {
    /// Whether it was left by a daemon of ours that has died.
    pub fn is_left_over(&self) -> bool {
        self.holders.is_empty() && PROGRAMS.iter().any(|(_, name)| self.name == shortened(name))
    }

    /// Takes the sockets out of the program's socket array, so that they fit into another one. What it then picks is left
    /// to the kernel's hash.
    pub fn empty(&self) {
        let arrays = self.maps.iter().filter_map(|id| {
            let map = Map::from_map_data(MapData::from_id(*id).ok()?).ok()?;
            ReusePortSockArray::try_from(map).ok()
        });
        for mut array in arrays {
            for slot in 0..MAX_WORKERS {
                // It fails where there is no socket, which is what is wanted.
                drop(array.clear_index(&slot));
            }
        }
    }
}

/// The kernel keeps 15 characters of a name.
fn shortened(name: &str) -> &str {
    &name[..name.len().min(15)]
}

/// Such as `program select_hash (id 12) of reuseport-lb (pid 34)`.
impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, name, holders, maps: _ } = self;
        if *id == 0 {
            return f.write_str("a classic BPF program (SO_ATTACH_REUSEPORT_CBPF)");
        }
        write!(f, "program {name} (id {id})")?;
        match holders.first() {
            Some((command, pid)) => write!(f, " of {command} (pid {pid})"),
            None => f.write_str(", which no process holds"),
        }
    }
}

/// The programs that pick among the listening sockets of `port` in `netns`, by the cookies of the sockets.
///
/// No system call tells. A program reads it from the kernel's structures, while it is given one socket after the other.
///
/// # Minimum kernel version
///
/// 5.9, with BTF.
///
/// # Errors
///
/// There is no BTF, or the kernel refuses the program.
pub fn attached(port: u16, netns: &Netns) -> Result<HashMap<u64, Attachment>, Error> {
    let name = names::LIST_ATTACHED;
    let btf = Btf::from_sys_fs()?;
    let offsets = Offsets::of_running_kernel();
    // Maps and programs of its own, since nothing is known of the group yet.
    let mut ebpf = Object { offsets: &offsets, log: None }.load(&BTreeMap::new())?;
    let iterator = program::<Iter>(&mut ebpf, name)?;
    iterator.load("tcp", &btf).map_err(Error::program(name))?;
    let link = iterator.attach().and_then(|id| iterator.take_link(id)).map_err(Error::program(name))?;
    // It iterates over the namespace in which it is opened.
    let mut bytes = Vec::new();
    netns
        .within(|| link.into_file().map_err(io::Error::other)?.read_to_end(&mut bytes))
        .flatten()
        .map_err(Error::system("reading a BPF iterator"))?;

    let (entries, _) = bytes.as_chunks::<{ size_of::<Attached>() }>();
    let found = entries.iter().map(parse).filter(|of| of.port == u32::from(port) && of.attached != 0);
    let mut known: HashMap<u32, Attachment> = HashMap::new();
    let mut describe = |id| known.entry(id).or_insert_with(|| describe(id)).clone();
    Ok(found.map(|Attached { cookie, program, .. }| (cookie, describe(program))).collect())
}

fn parse(bytes: &[u8; size_of::<Attached>()]) -> Attached {
    let word = |at: usize| {
        let [a, b, c, d] = [at, at + 1, at + 2, at + 3].map(|at| bytes[at]);
        u32::from_ne_bytes([a, b, c, d])
    };
    let [a, b, c, d, e, f, g, h, ..] = *bytes;
    Attached {
        cookie: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        port: word(8),
        attached: word(12),
        program: word(16),
        unused: 0,
    }
}

fn describe(id: u32) -> Attachment {
    let info = aya::programs::loaded_programs().flatten().find(|program| program.id() == id);
    let name = info.as_ref().and_then(|info| info.name_as_str().map(str::to_owned)).unwrap_or_default();
    let maps = info.and_then(|info| info.map_ids().ok().flatten()).unwrap_or_default();
    let holders = if id == 0 { vec![] } else { holders(id) };
    Attachment { id, name, maps, holders }
}

/// The processes that have a descriptor of a program, but for this one.
fn holders(id: u32) -> Vec<(String, u32)> {
    let wanted = format!("prog_id:\t{id}");
    let has_it = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(|info| info.lines().any(|line| line == wanted))
    };
    let me = std::process::id();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .filter(has_it)
        .map(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (command.trim_end().to_owned(), pid)
        })
        .collect()
}
