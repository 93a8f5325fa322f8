//! A terminal with somebody in front of it: what a program draws, and keys.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::ExitStatus,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::process::{Child, Command};

use crate::{command::display, eventually, within};

const LINES: u16 = 24;
const COLUMNS: u16 = 120;

/// A program on a terminal of its own. Dropping it ends the program.
pub struct Terminal {
    line: String,
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts a program on a terminal of 24 lines and 120 columns.
    pub fn start(line: &[OsString]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let path = ptsname(&master, Vec::new()).expect("ptsname").into_string().expect("a path");
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(OpenptFlags::NOCTTY.bits().cast_signed())
            .open(&path)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let size = Winsize { ws_row: LINES, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).expect("the size of the terminal");

        let end = || slave.try_clone().expect("a descriptor");
        let child = Command::new(&line[0])
            .args(&line[1..])
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", display(line)));

        let screen = Arc::new(Mutex::new(vt100::Parser::new(LINES, COLUMNS, 0)));
        let (mut reader, parser) = (File::from(master), Arc::clone(&screen));
        let keyboard = reader.try_clone().expect("a descriptor");
        // Ends with an error when the last one who has the slave is gone.
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                parser.lock().expect("the parser").process(&bytes[..count]);
            }
        });
        Self { line: display(line), child, keyboard, screen, reader }
    }

    /// What can be seen at this moment.
    pub fn screen(&self) -> String {
        self.screen.lock().expect("the parser").screen().contents()
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the program reads its keyboard");
    }

    /// Waits until something can be seen.
    pub async fn wait(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        eventually(what, async || {
            let screen = self.screen();
            if condition(&screen) { Ok(screen) } else { Err(format!("{} shows\n{screen}", self.line)) }
        })
        .await
    }

    /// Waits for the end of the program, and gives what it has left on the screen.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let status = within("the program has ended", self.child.wait()).await.expect("wait");
        // What it wrote last may be on its way still. The reader has all of it when it ends.
        self.reader.join().expect("the reader");
        let left = self.screen.lock().expect("the parser").screen().contents();
        (status, left)
    }
}
