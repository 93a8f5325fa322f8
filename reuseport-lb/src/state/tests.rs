use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::{
    group::{Found, Seen, Supervision},
    policy::{HashOn, Policy},
};

pub(super) fn file(folder: &Path) -> StateFile {
    StateFile::of(&folder.join("control.sock")).unwrap()
}

pub(super) fn state(file: &StateFile) -> State {
    let now = Instant::now();
    let policy = PolicySpec { name: Policy::ConsistentHash, hash_on: HashOn::Flow, balance_factor: None };
    let mut group = Group::new(3, policy, Duration::ZERO, Supervision::default(), now);
    for id in (0..3).map(WorkerId) {
        group.opened(id);
        group.started(id, 1_000 + u32::from(id.0), now);
    }
    group.drain(WorkerId(1), Some(Duration::from_secs(1)), false, now).unwrap();
    let ids = || (0..3).map(WorkerId);
    let pins =
        PinRecord { folder: "/nonexistent".into(), generation: 1, layout: 1, programs: "digest".into() };
    file.state(
        4,
        BTreeSet::from(["CAP_SYS_PTRACE".into()]),
        vec![GroupState {
            name: "default".into(),
            listen: ([127, 0, 0, 1], 80).into(),
            leaving: false,
            configured: Asked { policy, workers: 3, weights: vec![] },
            pins,
            group,
            sockets: ids().map(|id| (id, 77 + u64::from(id.0))).collect(),
            processes: ids()
                .map(|id| (id, ProcessState { pid: 1_000 + u32::from(id.0), started_at: 5 }))
                .collect(),
        }],
    )
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(folder.path());
    assert!(file.read().unwrap().is_none());
    let written = state(&file);
    file.write(written.clone()).unwrap();
    assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let read = file.read().unwrap().unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&written).unwrap());
    file.remove();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_another_process_left_half_written_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(folder.path());
    fs::write(folder.path().join("control.sock.state.new"), "{\"form").unwrap();
    file.write(state(&file)).unwrap();
    assert!(file.read().unwrap().is_some());
}

#[test]
fn a_state_of_another_kind_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(folder.path());
    file.write(state(&file)).unwrap();
    let good = fs::read_to_string(file.path()).unwrap();
    let refused = |text: &str| -> String {
        fs::write(file.path(), text).unwrap();
        let error = file.read().unwrap_err().to_string();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), text);
        error
    };
    let newer = good
        .replace(&format!("\"format\":{FORMAT}"), "\"format\":99")
        .replace("\"version\":\"", "\"version\":\"9.");
    assert!(refused(&newer).contains("format 99"));
    assert!(refused("").contains("cannot be a daemon's state"));
    assert!(refused(&good.replace("\"weight\":1", "\"weight\":0")).contains("weight 0"));
    assert!(refused(&good.replace("\"1\":78", "\"1\":77")).contains("twice"));
    assert!(refused(&good.replace("\"pid\":1001", "\"pid\":1000")).contains("twice"));
    let elsewhere = format!("\"network_namespace\":{}", state(&file).network_namespace);
    assert!(refused(&good.replace(&elsewhere, "\"network_namespace\":1")).contains("network namespace"));

    fs::write(file.path(), &good).unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o622)).unwrap();
    assert!(matches!(file.read(), Err(ReadError::Untrusted { .. })));
    fs::remove_file(file.path()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", file.path()).unwrap();
    file.read().unwrap_err();
}

#[test]
fn a_state_of_another_boot_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(folder.path());
    file.write(State { boot: "another".into(), ..state(&file) }).unwrap();
    assert!(file.read().unwrap().is_none());
}

/// What these bytes are to a daemon that finds them.
fn parsed(bytes: &[u8]) -> Option<State> {
    let file = StateFile::of(&PathBuf::from("/nonexistent/control.sock")).unwrap();
    file.parse(bytes).ok().flatten()
}

/// What reads the bytes may find them good or not. If it does, it writes them in a way that it reads alike; and going on
/// with them must not fail either, whatever is found of the workers.
fn is_taken_or_refused(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Some(state) = parsed(bytes) else { return Ok(()) };
    let written = serde_json::to_string(&state).unwrap();
    let read = parsed(written.as_bytes()).map(|state| serde_json::to_string(&state).unwrap());
    prop_assert_eq!(read.as_deref(), Some(&*written));
    for GroupState { group, .. } in state.groups {
        let now = Instant::now();
        for found in
            [Found::default(), Found { pid: Some(1), open: true }, Found { pid: Some(1), open: false }]
        {
            let mut group =
                group.clone().resume(Duration::from_secs(1), Supervision::default(), false, |_| found, now);
            for seconds in [0, 1, 60, 100_000] {
                let now = now + Duration::from_secs(seconds);
                group.advance(now, |_| Seen { idle: true, ..Seen::default() });
                drop((group.desired(), group.next_deadline(now)));
            }
        }
    }
    Ok(())
}

/// A file with a state and two changes.
fn good() -> Vec<u8> {
    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        let mut state = state(&file);
        file.write(state.clone()).unwrap();
        state.groups[0].group.set_policy(Policy::LeastLoaded.into()).unwrap();
        file.write(state.clone()).unwrap();
        state.groups[0].group.set_weight(WorkerId(1), 7).unwrap();
        state.groups[0].sockets.remove(&WorkerId(2));
        file.write(state).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 3);
        bytes
    });
    GOOD.clone()
}

proptest! {
    #![proptest_config(crate::fuzz::config(256))]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        is_taken_or_refused(&bytes)?;
    }

    #[test]
    fn any_changed_bytes_are_taken_or_refused(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut bytes = good();
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        is_taken_or_refused(&bytes)?;
    }

    /// Any number in place of any number.
    #[test]
    fn any_changed_numbers_are_taken_or_refused(
        which in any::<prop::sample::Index>(),
        number in any::<u64>(),
        shift in 0_u32..64,
    ) {
        let text = String::from_utf8(good()).unwrap();
        let starts: Vec<usize> = text
            .char_indices()
            .filter(|(at, c)| c.is_ascii_digit() && !text.as_bytes()[at - 1].is_ascii_digit())
            .map(|(at, _)| at)
            .collect();
        let start = starts[which.index(starts.len())];
        let end = start + text[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
        is_taken_or_refused(format!("{}{}{}", &text[..start], number >> shift, &text[end..]).as_bytes())?;
    }

    /// A value in place of another one of the same document, or nothing.
    #[test]
    fn any_cut_and_moved_parts_are_taken_or_refused(
        from in any::<prop::sample::Index>(),
        len in 0_usize..200,
        to in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = good();
        let from = from.index(bytes.len());
        let part = bytes[from..bytes.len().min(from + len)].to_vec();
        if cut {
            bytes.drain(from..from + part.len());
        }
        let to = to.index(bytes.len() + 1);
        bytes.splice(to..to, part);
        is_taken_or_refused(&bytes)?;
    }
}
