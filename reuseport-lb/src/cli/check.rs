//! `check`

use std::{collections::BTreeMap, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{env::Env, failure, render};
use crate::config::{
    GroupSpec,
    file::FileError,
    flags::DaemonFlags,
    source::{Loaded, Source},
};

/// Show what a configuration file would run, or everything that is wrong with it
///
/// Needs no daemon and changes nothing.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The file
    file: PathBuf,
    /// Print the settings as JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    daemon: BTreeMap<&'a str, String>,
    groups: Vec<ShownGroup<'a>>,
}

#[derive(Serialize)]
struct ShownGroup<'a> {
    name: &'a str,
    settings: BTreeMap<&'a str, String>,
}

impl Check {
    pub(super) fn run(self, env: &mut Env<'_>) -> anyhow::Result<()> {
        let Self { file: path, json } = self;
        let source = Source { path, control: None, flags: DaemonFlags::default() };
        let loaded = match source.load() {
            Ok(loaded) => loaded,
            Err(FileError::Wrong { path, faults }) if faults.len() > 1 => {
                let lines = faults.iter().map(|fault| format!("{}:{fault}", path.display()));
                return Err(failure::Several(lines.collect()).into());
            }
            Err(error) => return Err(error.into()),
        };
        if json {
            let settings = |spec: &GroupSpec| {
                spec.settings().into_iter().map(|setting| (setting.name, setting.value)).collect()
            };
            let groups = loaded.groups.iter();
            let groups =
                groups.map(|spec| ShownGroup { name: &spec.name, settings: settings(spec) }).collect();
            let daemon = loaded.daemon_settings().into_iter().collect();
            return Ok(render::json(env, &Shown { daemon, groups })?);
        }
        Ok(write!(env.out, "{}", text(&loaded))?)
    }
}

fn text(loaded: &Loaded) -> String {
    let daemon = loaded.daemon_settings();
    let groups = loaded.groups.iter().map(|spec| {
        let settings = spec.settings().into_iter().map(|setting| (setting.name, setting.value)).collect();
        (format!("group {}", spec.name), settings)
    });
    let tables = std::iter::once(("daemon".to_owned(), daemon)).chain(groups);
    let tables = tables.map(|(title, settings)| {
        let lines = settings.iter().map(|(name, value)| format!("  {name:<12} {value}\n"));
        format!("{title}\n{}", lines.collect::<String>())
    });
    tables.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::cli::testing::run;

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("web.toml");
        std::fs::write(&path, text).expect("a file");
        let path = path.display().to_string();
        (folder, path)
    }

    #[tokio::test]
    async fn a_good_file_is_shown_with_what_it_leaves_out() {
        let (_folder, path) =
            file("[groups.web]\nlisten = 80\nworkers = 2\n[groups.api]\nlisten = 81\nworkers = 1\n");
        let printed = run(Path::new("/nowhere"), &["check", &path]).await.printed();
        let (daemon, groups) = printed.split_once("\n\n").expect("a part for the daemon");
        assert!(daemon.contains("control      /run/reuseport-lb/control.sock"), "{printed}");
        assert!(groups.starts_with("group api\n  listen       0.0.0.0:81\n  workers      1\n"), "{printed}");
        assert!(groups.contains("\n\ngroup web\n  listen       0.0.0.0:80\n  workers      2\n"), "{printed}");
        assert!(groups.contains("  policy       consistent-hash on flow\n"), "{printed}");

        let json = run(Path::new("/nowhere"), &["check", "--json", &path]).await.printed();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["groups"][1]["name"], "web");
        assert_eq!(json["groups"][1]["settings"]["listen"], "0.0.0.0:80");
        assert_eq!(json["daemon"]["log-format"], "text");
    }

    #[tokio::test]
    async fn a_bad_file_gets_a_line_for_each_fault() {
        let (_folder, path) = file("[groups.web]\npolcy = 'hash'\n");
        let ran = run(Path::new("/nowhere"), &["check", &path]).await;
        assert_eq!(ran.failed(1), format!("{path}:2:1: unknown key 'polcy'; did you mean 'policy'?"));

        let (_folder, path) = file("[groups.web]\npolcy = 'hash'\nworkers = 0\n");
        let ran = run(Path::new("/nowhere"), &["check", &path]).await;
        assert_eq!((ran.status, &*ran.out), (1, ""));
        let expected = format!(
            "reuseport-lb: {path}:2:1: unknown key 'polcy'; did you mean 'policy'?\n\
             reuseport-lb: {path}:3:11: workers: too low: a group has 1 to 1,024 workers\n"
        );
        assert_eq!(ran.err, expected);
    }
}
