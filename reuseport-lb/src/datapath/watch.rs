//! News of sockets that begin and cease to listen.

use aya::{
    Btf, Ebpf,
    maps::{Array, MapData, RingBuf},
    programs::BtfTracePoint,
};
use reuseport_lb_ebpf::{
    listen::{ListenEvent, Watched},
    names,
};

use super::{
    Error,
    kernel::{KernelDatapath, Value, program, take},
};

impl KernelDatapath {
    /// Calls `tell` whenever a socket begins to listen on `port` in the network namespace with the inode `netns`, and
    /// whenever a socket that is in a slot ceases to, for as long as this value lives.
    ///
    /// A socket is told of before it is part of its group, and some news may be missing where others are told: they say
    /// that something has changed, and where to look first. Can be had once.
    ///
    /// # Minimum kernel version
    ///
    /// 5.12, with BTF.
    ///
    /// # Errors
    ///
    /// There is no BTF, or the kernel refuses the program.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn watch_listeners(
        &mut self,
        port: u16,
        netns: u32,
        tell: impl Fn(ListenEvent) + Send + 'static,
    ) -> Result<(), Error> {
        let mut ebpf = self.programs.get();
        let mut watched: Array<_, Value<Watched>> = take(&mut ebpf, names::WATCHED)?;
        watched.set(0, Value(Watched { port: port.into(), netns }), 0).map_err(Error::map(names::WATCHED))?;
        let listened: RingBuf<_> = take(&mut ebpf, names::LISTENED)?;

        // The link stays with the program, and so ends with this value. Without a daemon nobody reads the news.
        load(&mut ebpf)?.attach().map_err(Error::program(names::WATCH_LISTENERS))?;
        drop(ebpf);

        let read = move |listened: &mut RingBuf<MapData>| {
            while let Some(event) = listened.next() {
                if let Some(event) = parse(&event) {
                    tell(event);
                }
            }
        };
        self.read(listened, read).map_err(Error::system("epoll_ctl"))
    }
}

/// Loads the program.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, Error> {
    let name = names::WATCH_LISTENERS;
    let watcher = program::<BtfTracePoint>(ebpf, name)?;
    watcher.load(names::INET_SOCK_SET_STATE, &Btf::from_sys_fs()?).map_err(Error::program(name))?;
    Ok(watcher)
}

/// What a program has written, whose size the kernel keeps.
fn parse(bytes: &[u8]) -> Option<ListenEvent> {
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (pid, rest) = rest.split_first_chunk()?;
    let (listens, _) = rest.split_first_chunk()?;
    Some(ListenEvent {
        cookie: u64::from_ne_bytes(*cookie),
        pid: u32::from_ne_bytes(*pid),
        listens: u32::from_ne_bytes(*listens),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_program_writes() {
        let bytes = [7_u64.to_ne_bytes().as_slice(), &9_u32.to_ne_bytes(), &1_u32.to_ne_bytes()].concat();
        assert_eq!(parse(&bytes), Some(ListenEvent { cookie: 7, pid: 9, listens: 1 }));
        assert_eq!(parse(&bytes[..15]), None);
    }
}
