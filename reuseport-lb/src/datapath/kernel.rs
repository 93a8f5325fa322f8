//! The datapath of the running kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::BorrowedFd,
    path::Path,
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, ReusePortSockArray, RingBuf, SkStorage},
    programs::{ProgramError, SkReuseport, SkReuseportError},
};
use reuseport_lb_ebpf::{
    LAYOUT_VERSION,
    listen::Watched,
    names,
    outcome::{Outcome, Outcomes},
    worker::Owner,
};
use tokio::task::JoinSet;

use super::{
    Datapath, Error, Selection, SlotLoad,
    grace::Grace,
    memory,
    object::Object,
    offsets::Offsets,
    pins::{self, Earlier, Pins},
    programs::{Programs, name_of, verify},
    tables::{SharedLoads, SharedSums, SharedTables},
    takeover::{self, PinRecord, TakenOver},
    trackers,
};
use crate::{config::BpfLogLevel, policy::Program};

/// Plain integers without padding, so that any bytes make one: what aya asks of a map's value.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value<T>(pub(super) T);

// SAFETY: the layout of these types is asserted, without padding, where they are declared.
unsafe impl Pod for Value<Owner> {}
// SAFETY: as above.
unsafe impl Pod for Value<Watched> {}

/// The programs and maps of one group.
///
/// Dropping it takes away the pins and stops the counting of connections. The program stays with the group until
/// [`attach`](Datapath::attach) with [`Policy::Kernel`](crate::policy::Policy::Kernel), or until the group's last socket is closed.
pub struct KernelDatapath {
    pub(super) programs: Programs,
    tables: SharedTables,
    loads: SharedLoads,
    sums: SharedSums,
    sockets: ReusePortSockArray<MapData>,
    pub(super) owner: SkStorage<MapData, Value<Owner>>,
    listeners: HashMap<MapData, u64, u32>,
    cookies: BTreeMap<u16, u64>,
    outcomes: PerCpuArray<MapData, Outcomes>,
    seed: u64,
    pub(super) stalls: Option<RingBuf<MapData>>,
    counts_connections: bool,
    grace: Grace,
    // Ended together with it, since they hold maps.
    pub(super) tasks: JoinSet<()>,
    record: PinRecord,
    taken_over: Option<TakenOver>,
    strays: Vec<ReusePortSockArray<MapData>>,
    pins: Pins,
}

impl KernelDatapath {
    /// Makes maps, pins them below the folder `group`, starts to count connections, and loads `program`. The others are
    /// loaded by [`settle_in`](Self::settle_in), or when they are needed.
    ///
    /// `seed` is that of the flow hash, and `log` what the programs are to log; see [`Self::forward_log`]. `earlier` is
    /// what an earlier daemon wrote down of its pins: of those, all that fits is used again, and nothing changes for its
    /// programs and their connections before [`Datapath::attach`]. Without it, pins that are there are of no use to
    /// anybody, and are taken away.
    ///
    /// # Errors
    ///
    /// What an earlier daemon has left is as it was.
    ///
    /// # Minimum kernel version
    ///
    /// 5.14. Without cgroup v2, connections are not counted.
    pub fn load(
        group: &Path,
        seed: u64,
        log: Option<BpfLogLevel>,
        program: Program,
        earlier: Option<&PinRecord>,
    ) -> Result<Self, Error> {
        let offsets = Offsets::of_running_kernel();
        let object = Object { offsets: &offsets, log };
        if earlier.is_none() && pins::clear(group)? {
            tracing::info!(folder = %group.display(), "removed the pins of a daemon that died");
        }
        let (mut ebpf, kept) = takeover::load(&object, earlier)?;
        verify(&mut ebpf, name_of(program).as_slice())?;
        let record = PinRecord {
            folder: group.to_owned(),
            generation: 0,
            layout: LAYOUT_VERSION,
            programs: object.digest(),
        };
        let taken_over = takeover::tell(&ebpf, &kept, false);
        // The same programs with the same maps: there is nothing to exchange.
        let same = earlier
            .filter(|earlier| earlier.programs == record.programs && taken_over.replaced.is_empty())
            .map(|earlier| Earlier::new(&earlier.folder, earlier.generation));
        let (links, counting_kept) = trackers::links(&mut ebpf, same.as_ref())?;

        let counts_connections = !links.is_empty();
        let pins = Pins::create(group, &ebpf, links)?;
        let strays = match earlier {
            Some(earlier) => takeover::other_socket_arrays(&earlier.folder, &ebpf)?,
            None => vec![],
        };
        // A daemon lives for months with what it takes now.
        memory::give_back();
        Ok(Self {
            tables: SharedTables::map(map_data(&ebpf, names::TABLES)?.fd())?,
            loads: SharedLoads::map(map_data(&ebpf, names::WORKERS)?.fd())?,
            sums: SharedSums::map(map_data(&ebpf, names::SUMS)?.fd())?,
            sockets: take(&mut ebpf, names::SOCKETS)?,
            owner: take(&mut ebpf, names::OWNER)?,
            listeners: take(&mut ebpf, names::LISTENERS)?,
            cookies: BTreeMap::new(),
            outcomes: take(&mut ebpf, names::OUTCOMES)?,
            stalls: Some(take(&mut ebpf, names::STALLS)?),
            programs: Programs::new(ebpf),
            seed,
            counts_connections,
            // An earlier daemon may have died just after it committed something.
            grace: Grace::new(earlier.is_some()),
            tasks: JoinSet::new(),
            record: PinRecord { generation: pins.generation(), ..record },
            taken_over: earlier.map(|_| TakenOver { counting_kept, ..taken_over }),
            strays,
            pins,
        })
    }

    /// What to write down of the pins, so that a later daemon can take over.
    pub const fn record(&self) -> &PinRecord {
        &self.record
    }

    /// What became of an earlier daemon's maps and programs, if there were any.
    pub const fn taken_over(&self) -> Option<&TakenOver> {
        self.taken_over.as_ref()
    }

    /// Whether sockets that an earlier daemon had in its array have to go to another one.
    pub fn moves_sockets(&self) -> bool {
        !self.strays.is_empty() && !self.keeps(names::SOCKETS)
    }

    fn keeps(&self, map: &str) -> bool {
        self.taken_over.as_ref().is_some_and(|over| over.has_kept(map))
    }

    /// The slot of each socket, by cookie, as the kernel remembers it. Sockets that are gone may be among them.
    pub fn slots(&self) -> BTreeMap<u64, u16> {
        let slots = self.listeners.iter().filter_map(Result::ok);
        slots.filter_map(|(cookie, slot)| Some((cookie, u16::try_from(slot).ok()?))).collect()
    }

    /// The ring that the programs pick from. It is an earlier daemon's until something is committed.
    pub fn ring(&self) -> Vec<u16> {
        self.tables.ring()
    }

    /// From now on, what an earlier daemon has pinned is not needed any more, and dropping this value takes away all of
    /// the group's pins. The other programs are loaded by a thread, which has the privileges of the calling one.
    pub fn settle_in(&mut self) {
        let known: BTreeSet<u64> = self.cookies.values().copied().collect();
        for cookie in self.slots().into_keys().filter(|cookie| !known.contains(cookie)) {
            drop(self.listeners.remove(&cookie));
        }
        self.strays.clear();
        self.pins.settle();
        self.programs.verify_all();
    }

    /// Takes the slot's last socket out of [`names::LISTENERS`].
    fn forget_listener(&mut self, slot: u16) {
        if let Some(cookie) = self.cookies.remove(&slot) {
            // It fails only when it is not there, which is what is wanted.
            drop(self.listeners.remove(&cookie));
        }
    }

    /// Attaches a program in place of the present one, or takes that one away.
    fn exchange(&mut self, program: Program, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let Some(name) = name_of(program) else {
            return match SkReuseport::detach(socket) {
                // No program is attached, which is what is wanted.
                Err(ProgramError::SkReuseportError(SkReuseportError::SetsockoptError {
                    io_error, ..
                })) if io_error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.map_err(Error::program("detach")),
            };
        };
        self.programs.attach(name, socket)?;
        self.grace.begin();
        Ok(())
    }
}

impl Datapath for KernelDatapath {
    fn insert(&mut self, slot: u16, socket: BorrowedFd<'_>) -> Result<(), Error> {
        // The socket knows its slot before it can be picked, so that each connection is counted.
        let owner = Owner { slot: slot.into(), counted: 0 };
        self.owner.insert(&socket, Value(owner), 0).map_err(Error::map(names::OWNER))?;
        let cookie = rustix::net::sockopt::socket_cookie(socket)
            .map_err(|error| Error::system("getsockopt(SO_COOKIE)")(error.into()))?;
        // The slot's last socket was closed, and its queue has moved long ago.
        self.forget_listener(slot);
        self.listeners.insert(cookie, u32::from(slot), 0).map_err(Error::map(names::LISTENERS))?;
        self.cookies.insert(slot, cookie);
        let mut put = || match self.sockets.set(slot.into(), &socket, 0) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::ResourceBusy => {
                Ok(false)
            }
            result => result.map(|()| true).map_err(Error::map(names::SOCKETS)),
        };
        // A socket fits one place only. That it has one means that an earlier daemon put it there.
        let taken = match put() {
            Ok(false) if !self.strays.is_empty() => {
                for stray in &mut self.strays {
                    // Where the slot is empty, it is as it should be.
                    drop(stray.clear_index(&slot.into()));
                }
                put()
            }
            result => result,
        };
        match taken {
            Ok(true) => Ok(()),
            Ok(false) if self.keeps(names::SOCKETS) => Ok(()),
            Ok(false) => Err(Error::Unreachable(slot)),
            Err(error) => {
                // Nothing was picked yet, so nothing depends on the entry.
                self.forget_listener(slot);
                Err(error)
            }
        }
    }

    fn remove(&mut self, slot: u16) -> Result<(), Error> {
        match self.sockets.clear_index(&slot.into()) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(Error::map(names::SOCKETS)),
        }
    }

    fn forget(&mut self, slot: u16) -> Result<(), Error> {
        self.forget_listener(slot);
        // No program counts for a slot that no table names.
        self.settle()?;
        self.loads.forget(slot);
        Ok(())
    }

    fn commit(&mut self, selection: &Selection<'_>) -> Result<(), Error> {
        self.settle()?;
        self.tables.commit(selection, self.seed);
        self.grace.begin();
        Ok(())
    }

    fn attach(&mut self, program: Program, socket: BorrowedFd<'_>) -> Result<(), Error> {
        if program.compares_loads() && !self.counts_connections {
            return Err(Error::NotCounted(program));
        }
        if program.compares_loads() {
            self.sums.keep(true);
        }
        self.exchange(program, socket)?;
        if !program.compares_loads() {
            self.sums.keep(false);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        self.grace.end()
    }

    fn counts_connections(&self) -> bool {
        self.counts_connections
    }

    fn load(&self, slot: u16) -> SlotLoad {
        self.loads.get(slot)
    }

    fn outcomes(&self) -> Result<Outcomes, Error> {
        let cpus = self.outcomes.get(&0, 0).map_err(Error::map(names::OUTCOMES))?;
        let mut sums = [0; Outcome::COUNT];
        for cpu in cpus.iter() {
            for (sum, count) in sums.iter_mut().zip(cpu) {
                *sum += count;
            }
        }
        Ok(sums)
    }
}

pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(Error::Lacks(name))?;
    program.try_into().map_err(Error::program(name))
}

pub(super) fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Lacks(name))?;
    map.try_into().map_err(Error::map(name))
}

fn map_data<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, Error> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(Error::Lacks(name)),
    }
}
