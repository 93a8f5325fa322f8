//! What an earlier daemon has left in the kernel, and what of it fits.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapInfo, ReusePortSockArray},
};
use reuseport_lb_ebpf::{LAYOUT_VERSION, names};
use serde::{Deserialize, Serialize};

use super::{
    Error,
    object::Object,
    offsets::Offsets,
    pins,
    pins::Earlier,
    programs::{PROGRAMS, verify},
    trackers, watch,
};
use crate::config::BpfLogLevel;

/// What a daemon writes down of the pins of a group, for the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// The group's folder.
    pub folder: PathBuf,
    /// The folder with them, in the group's folder.
    pub generation: u64,
    /// The [`LAYOUT_VERSION`] of the maps.
    pub layout: u32,
    /// The digest of the programs, with all that was set in them when they were loaded.
    pub programs: String,
}

/// What became of an earlier daemon's maps and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// The maps that are still used, with what is in them.
    pub kept: Vec<String>,
    /// The maps that did not fit, or were gone. There are new ones, which begin empty.
    pub replaced: Vec<String>,
    /// Whether the connections go on being counted by the program that did so.
    pub counting_kept: bool,
}

impl TakenOver {
    /// Whether this map is still used.
    pub fn has_kept(&self, name: &str) -> bool {
        self.kept.iter().any(|kept| kept == name)
    }
}

impl PinRecord {
    /// Takes everything away that is pinned for a group that nobody has any more.
    ///
    /// # Errors
    ///
    /// Some of it is still there.
    pub fn clear(&self) -> Result<(), Error> {
        pins::clear(&self.folder).map(drop)
    }
}

/// Sees which maps of earlier daemons would have to be replaced, and whether the kernel takes the programs, those that
/// tell of sockets included where `follows` says so. Changes nothing.
///
/// # Errors
///
/// As [`KernelDatapath::load`](super::KernelDatapath::load) would give.
pub fn rehearse(
    log: Option<BpfLogLevel>,
    follows: bool,
    earlier: &[&PinRecord],
) -> Result<BTreeSet<String>, Error> {
    let object = Object { offsets: &Offsets::of_running_kernel(), log };
    let (mut ebpf, _) = load(&object, None)?;
    verify(&mut ebpf, &PROGRAMS.map(|(_, name)| name))?;
    trackers::load(&mut ebpf)?;
    if follows {
        watch::load(&mut ebpf)?;
    }
    let mut replaced = BTreeSet::new();
    for record in earlier {
        replaced.extend(tell(&ebpf, &fitting(&ebpf, record)?, false).replaced);
    }
    Ok(replaced)
}

/// Makes the maps, but for those of an earlier daemon that fit, which are given with their pins. No program is loaded, and
/// nothing changes for anybody.
pub(super) fn load(
    object: &Object<'_>,
    earlier: Option<&PinRecord>,
) -> Result<(Ebpf, BTreeMap<String, PathBuf>), Error> {
    let mut ebpf = object.load(&BTreeMap::new())?;
    let kept = earlier.map_or(Ok(BTreeMap::new()), |record| fitting(&ebpf, record))?;
    if !kept.is_empty() {
        ebpf = object.load(&kept)?;
    }
    Ok((ebpf, kept))
}

/// The maps that an earlier daemon has pinned and that fit, by name, with their pins.
///
/// `fresh` are maps as this version makes them. They tell what fits: the kernel describes both. Of another layout only
/// the socket array fits, whose contents are the kernel's and not ours.
fn fitting(fresh: &Ebpf, record: &PinRecord) -> Result<BTreeMap<String, PathBuf>, Error> {
    let earlier = Earlier::new(&record.folder, record.generation);
    let mut fitting = BTreeMap::new();
    for (name, map) in fresh.maps() {
        // Sections of the object, such as the globals, belong to its programs.
        if name.starts_with('.') || record.layout != LAYOUT_VERSION && name != names::SOCKETS {
            continue;
        }
        let (Some(path), Some(wanted)) = (earlier.path(name), data(map)) else { continue };
        let wanted = wanted.info().map_err(Error::map("pinned"))?;
        match MapInfo::from_pin(&path) {
            Ok(found) if is_alike(&found, &wanted) => {
                fitting.insert(name.to_owned(), path);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot open a pinned map"),
        }
    }
    Ok(fitting)
}

/// Whether two maps have the same type and sizes.
fn is_alike(found: &MapInfo, wanted: &MapInfo) -> bool {
    found.map_type().ok() == wanted.map_type().ok()
        && found.key_size() == wanted.key_size()
        && found.value_size() == wanted.value_size()
        && found.max_entries() == wanted.max_entries()
        && found.map_flags() == wanted.map_flags()
}

/// What is told of it: names of maps, without those that are part of the programs.
pub(super) fn tell(ebpf: &Ebpf, kept: &BTreeMap<String, PathBuf>, counting_kept: bool) -> TakenOver {
    let all: BTreeSet<_> =
        ebpf.maps().map(|(name, _)| name).filter(|name| !name.starts_with('.')).map(str::to_owned).collect();
    let kept: BTreeSet<_> = kept.keys().cloned().collect();
    TakenOver {
        replaced: all.difference(&kept).cloned().collect(),
        kept: kept.into_iter().collect(),
        counting_kept,
    }
}

/// The socket arrays of earlier daemons for a group, but for the one that `ebpf` has.
pub(super) fn other_socket_arrays(
    group: &Path,
    ebpf: &Ebpf,
) -> Result<Vec<ReusePortSockArray<MapData>>, Error> {
    let ours = ebpf.map(names::SOCKETS).and_then(data).ok_or(Error::Lacks(names::SOCKETS))?;
    let ours = ours.info().map_err(Error::map(names::SOCKETS))?.id();
    Ok(pins::everywhere(group, names::SOCKETS)
        .into_iter()
        .filter_map(|path| MapData::from_pin(path).ok())
        .filter(|map| map.info().is_ok_and(|info| info.id() != ours))
        .filter_map(|map| Map::from_map_data(map).ok()?.try_into().ok())
        .collect())
}

/// The map itself, of the types that the object has.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ReusePortSockArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}
