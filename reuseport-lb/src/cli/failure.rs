//! How a command fails: one line on standard error, and the exit status.

use clap::error::ErrorKind;

use super::env::Env;

/// It failed.
const FAILED: u8 = 1;

/// The command line was wrong.
const USAGE: u8 = 2;

/// The command line was wrong, in a way that only the command itself sees.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongUsage(pub(super) String);

/// Several things failed, each with a line of its own.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub(super) struct Several(pub(super) Vec<String>);

/// Tells why a command failed, with all its causes, and gives the exit status. Help and version come this way, too.
pub(super) fn report(env: &mut Env<'_>, error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<clap::Error>() {
        Some(asked_for) if !asked_for.use_stderr() => print(env, asked_for),
        Some(wrong) => {
            say(env, &on_one_line(wrong));
            USAGE
        }
        None => {
            match error.downcast_ref() {
                Some(Several(lines)) => lines.iter().for_each(|line| say(env, line)),
                None => say(env, &format!("{error:#}")),
            }
            if error.is::<WrongUsage>() { USAGE } else { FAILED }
        }
    }
}

fn print(env: &mut Env<'_>, help: &clap::Error) -> u8 {
    let text = help.render();
    let text = if env.terminal_columns.is_some() { text.ansi().to_string() } else { text.to_string() };
    match env.out.write_all(text.as_bytes()).and_then(|()| env.out.flush()) {
        Ok(()) => 0,
        Err(e) => report(env, &e.into()),
    }
}

fn say(env: &mut Env<'_>, what: &str) {
    let line = what.split_whitespace().collect::<Vec<_>>().join(" ");
    // Where standard error is gone, the exit status has to do.
    drop(writeln!(env.err, "reuseport-lb: {line}"));
}

/// clap's message without its layout: what is wrong, then its tips. The usage is one `--help` away.
fn on_one_line(error: &clap::Error) -> String {
    if matches!(
        error.kind(),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return "a command is missing; try --help".into();
    }
    let text = error.render().to_string();
    let usage = text.find("\n\nUsage:").or_else(|| text.find("\n\nFor more information"));
    let message = &text[..usage.unwrap_or(text.len())];
    let mut line = message
        .strip_prefix("error: ")
        .unwrap_or(message)
        .replace("\n\n", "\n")
        .replace("\n  tip:", "; tip:");
    // Nobody who mistypes an option means a value.
    if let Some(start) = line.find("; tip: to pass '") {
        line.truncate(start);
    }
    format!("{line}; try --help")
}
