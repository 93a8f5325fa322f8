//! Who may do what with the control socket.
//!
//! The mode of its file keeps most of them out. What it cannot tell apart is told by the credentials of the peer, which the
//! kernel took when it connected.

use std::fmt;

use axum::{
    Extension, Router,
    extract::Request,
    http::{Method, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use rustix::{fs::Mode, process::geteuid};
use tokio::net::{UnixStream, unix::UCred};

use super::routes::ApiError;
use crate::config::UserGroup;

/// Who may use the control socket, besides root and the daemon's own user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// These users may do everything, but for naming programs that the daemon is to run.
    pub control: Option<UserGroup>,
    /// These users may look.
    pub readonly: Option<UserGroup>,
}

/// What a peer may do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Right {
    Everything,
    Operating,
    Looking,
    Nothing,
}

/// Goes with the requests of those who may operate the daemon, and are neither root nor its own user: what they name must
/// not run with its rights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operator;

impl Access {
    /// The mode that the socket's file needs, and the group that it is given to.
    ///
    /// A file has one group. With two to be told apart, everybody may connect, and is told what he may not do.
    pub(super) fn file(&self) -> (Mode, Option<u32>) {
        let owner = Mode::RUSR | Mode::WUSR;
        let group = Mode::RGRP | Mode::WGRP;
        match (&self.control, &self.readonly) {
            (None, None) => (owner, None),
            (Some(one), None) | (None, Some(one)) => (owner | group, Some(one.id)),
            (Some(one), Some(other)) if one.id == other.id => (owner | group, Some(one.id)),
            (Some(_), Some(_)) => (owner | group | Mode::ROTH | Mode::WOTH, None),
        }
    }

    /// `router` as the peer of `stream` may use it.
    pub(super) fn limit(&self, router: &Router, stream: &UnixStream) -> Router {
        let right = match stream.peer_cred() {
            Ok(peer) => self.right(&Peer::of(&peer)),
            Err(error) => {
                tracing::warn!(%error, "cannot tell who connects to the control socket");
                Right::Nothing
            }
        };
        match right {
            Right::Everything => return router.clone(),
            Right::Operating => return router.clone().layer(Extension(Operator)),
            Right::Looking | Right::Nothing => {}
        }
        let access = self.clone();
        router.clone().layer(from_fn(move |request: Request, next: Next| {
            let refusal = access.refusal(&right, request.method());
            async move {
                match refusal {
                    None => next.run(request).await,
                    Some(why) => forbid(why),
                }
            }
        }))
    }

    fn right(&self, peer: &Peer) -> Right {
        let is_in = |group: &Option<UserGroup>| group.as_ref().is_some_and(|group| peer.is_in(group.id));
        if peer.uid == 0 || peer.uid == geteuid().as_raw() {
            Right::Everything
        } else if is_in(&self.control) {
            Right::Operating
        } else if is_in(&self.readonly) {
            Right::Looking
        } else {
            Right::Nothing
        }
    }

    fn refusal(&self, right: &Right, method: &Method) -> Option<String> {
        match right {
            Right::Everything | Right::Operating => None,
            Right::Looking if *method == Method::GET || *method == Method::HEAD => None,
            Right::Looking => {
                Some(format!("not permitted: you may look and change nothing, which is for {self}"))
            }
            Right::Nothing => Some(format!("not permitted: this control socket is for {self}")),
        }
    }
}

/// Who may do everything.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.control {
            None => f.write_str("root; run it with sudo, or start the daemon with --control-group"),
            Some(group) => write!(f, "root and the group {}; run it with sudo", group.name),
        }
    }
}

fn forbid(why: String) -> Response {
    ApiError::new(StatusCode::FORBIDDEN, why).into_response()
}

/// Who is at the other end.
#[derive(Debug)]
struct Peer {
    uid: u32,
    gid: u32,
    /// The further groups that it is in.
    groups: Vec<u32>,
}

impl Peer {
    fn of(peer: &UCred) -> Self {
        let (uid, gid) = (peer.uid(), peer.gid());
        Self { uid, gid, groups: further_groups(peer.pid(), uid, gid).unwrap_or_default() }
    }

    fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

/// The further groups of the process that connected, which the credentials leave out.
///
/// They are those of whoever has its id now. That this is a process with more rights is kept out by comparing user and
/// group: one that became another by a set-uid or set-gid program, or that got the id of one that ended, differs.
fn further_groups(pid: Option<i32>, uid: u32, gid: u32) -> Option<Vec<u32>> {
    let status = procfs::process::Process::new(pid?).ok()?.status().ok()?;
    let is_same = [status.ruid, status.euid, status.suid].iter().all(|id| *id == uid)
        && [status.rgid, status.egid, status.sgid].iter().all(|id| *id == gid);
    is_same.then_some(status.groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(id: u32) -> Option<UserGroup> {
        Some(UserGroup { name: format!("group{id}"), id })
    }

    #[test]
    fn root_and_the_groups_get_in_and_nobody_else() {
        let access = Access { control: group(10), readonly: group(20) };
        let peer = |uid, gid, groups: &[u32]| Peer { uid, gid, groups: groups.to_vec() };
        for (peer, right) in [
            (peer(0, 0, &[]), Right::Everything),
            (peer(99_999, 10, &[]), Right::Operating),
            (peer(99_999, 1, &[5, 10]), Right::Operating),
            (peer(99_999, 20, &[]), Right::Looking),
            (peer(99_999, 1, &[20]), Right::Looking),
            (peer(99_999, 20, &[10]), Right::Operating),
            (peer(99_999, 1, &[2]), Right::Nothing),
        ] {
            assert_eq!(access.right(&peer), right, "{peer:?}");
            if right != Right::Everything && peer.uid != geteuid().as_raw() {
                assert_eq!(Access::default().right(&peer), Right::Nothing, "{peer:?}");
            }
        }
    }

    #[test]
    fn who_may_look_may_change_nothing() {
        let access = Access { control: None, readonly: group(20) };
        for (right, method, allowed) in [
            (Right::Looking, Method::GET, true),
            (Right::Looking, Method::HEAD, true),
            (Right::Looking, Method::PUT, false),
            (Right::Looking, Method::POST, false),
            (Right::Looking, Method::DELETE, false),
            (Right::Nothing, Method::GET, false),
            (Right::Operating, Method::DELETE, true),
            (Right::Everything, Method::DELETE, true),
        ] {
            assert_eq!(access.refusal(&right, &method).is_none(), allowed, "{right:?} {method}");
        }
    }

    #[test]
    fn the_file_lets_in_no_more_than_it_has_to() {
        let file = |control, readonly| {
            let (mode, group) = Access { control, readonly }.file();
            (mode.as_raw_mode(), group)
        };
        assert_eq!(file(None, None), (0o600, None));
        assert_eq!(file(group(10), None), (0o660, Some(10)));
        assert_eq!(file(None, group(20)), (0o660, Some(20)));
        assert_eq!(file(group(10), group(10)), (0o660, Some(10)));
        assert_eq!(file(group(10), group(20)), (0o666, None));
    }
}
