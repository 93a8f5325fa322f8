//! TOML tables by the declarations of the flags: the keys of a table are the names of the flags, and a value is what
//! stands behind the flag. So both are read by the same code.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    ffi::OsString,
    ops::Range,
};

use clap::{
    Arg, ArgAction, Args, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// How alike two names must be for one to be meant by the other; clap takes the same.
const ALIKE: f64 = 0.7;

/// Something wrong in a file, and the bytes where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: Range<usize>,
    pub(super) why: String,
}

/// A table that was read.
pub(super) struct Read<T> {
    /// Its settings; none when something in it is wrong.
    pub(super) settings: Option<T>,
    /// Where the value of each key stands.
    pub(super) values: BTreeMap<String, Range<usize>>,
}

/// Reads a table with the keys that `T` declares as flags. `header` is where the table begins.
pub(super) fn read<T: Args>(table: &DeTable<'_>, header: &Range<usize>, wrong: &mut Vec<Wrong>) -> Read<T> {
    let command = T::augment_args(Command::new("settings").no_binary_name(true).disable_help_flag(true));
    let known: BTreeMap<&str, &Arg> = command.get_arguments().map(|arg| (key_of(arg), arg)).collect();
    let before = wrong.len();
    let (mut options, mut words) = (Vec::new(), Vec::new());
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let Some((name, arg)) = known.get_key_value(&**key.get_ref()) else {
            wrong.push(unknown(key, &known.keys().copied().collect()));
            continue;
        };
        values.insert((*name).to_owned(), value.span());
        let given = match arguments(name, arg, value) {
            Ok(given) => given,
            Err(mistake) => {
                wrong.push(mistake);
                continue;
            }
        };
        for (at, argument) in given {
            if arg.is_positional() {
                words.push(argument);
            } else {
                wrong.extend(mistake(&command, name, &argument).map(|why| Wrong { at, why }));
                options.push(argument);
            }
        }
    }
    if wrong.len() > before {
        return Read { settings: None, values };
    }
    if !words.is_empty() {
        options.push("--".into());
        options.append(&mut words);
    }
    let settings = command.try_get_matches_from(options).and_then(|matches| T::from_arg_matches(&matches));
    let settings =
        settings.map_err(|error| wrong.push(Wrong { at: header.clone(), why: first_line(&error) })).ok();
    Read { settings, values }
}

/// The key of a flag: its long name. The worker's command has none.
fn key_of(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_else(|| arg.get_id().as_str())
}

/// An unknown key, with the known one that is most alike.
pub(super) fn unknown(key: &Spanned<impl AsRef<str>>, known: &BTreeSet<&str>) -> Wrong {
    let text = key.get_ref().as_ref();
    let likeness = |name: &&str| strsim::jaro_winkler(text, name);
    let nearest = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let hint = match nearest.filter(|name| likeness(name) > ALIKE) {
        Some(name) => format!("did you mean '{name}'?"),
        None => format!("known are {}", known.iter().copied().collect::<Vec<_>>().join(", ")),
    };
    Wrong { at: key.span(), why: format!("unknown key '{}'; {hint}", text.escape_debug()) }
}

/// What would stand on the command line for a value, each with its place.
fn arguments(
    name: &str,
    arg: &Arg,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<(Range<usize>, OsString)>, Wrong> {
    let wrong = |at: &Spanned<DeValue<'_>>, wanted: &str| {
        let found = with_article(at.get_ref().type_str());
        Wrong { at: at.span(), why: format!("{name}: {wanted}, not {found}") }
    };
    let option = |text: &str| OsString::from(format!("--{name}={text}"));
    let takes_many = matches!(arg.get_action(), ArgAction::Append);
    match value.get_ref() {
        DeValue::Boolean(given) if matches!(arg.get_action(), ArgAction::SetTrue) => {
            Ok(given.then(|| (value.span(), format!("--{name}").into())).into_iter().collect())
        }
        _ if matches!(arg.get_action(), ArgAction::SetTrue) => Err(wrong(value, "true or false is expected")),
        DeValue::Array(elements) if arg.is_positional() => elements
            .iter()
            .map(|element| match scalar(element.get_ref()) {
                Some(text) => Ok((element.span(), text.into())),
                None => Err(wrong(element, "a word is expected")),
            })
            .collect(),
        _ if arg.is_positional() => {
            Err(wrong(value, r#"an array of words is expected, such as ["program", "argument"]"#))
        }
        DeValue::Array(elements) if takes_many => elements
            .iter()
            .map(|element| match scalar(element.get_ref()) {
                Some(text) => Ok((element.span(), option(&text))),
                None => Err(wrong(element, "a text or a number is expected")),
            })
            .collect(),
        DeValue::Table(pairs) if takes_many => pairs
            .iter()
            .map(|(key, element)| match scalar(element.get_ref()) {
                Some(text) => Ok((element.span(), option(&format!("{}={text}", key.get_ref())))),
                None => Err(wrong(element, "a text or a number is expected")),
            })
            .collect(),
        single => match scalar(single) {
            Some(text) => Ok(vec![(value.span(), option(&text))]),
            None => Err(wrong(value, "a text or a number is expected")),
        },
    }
}

/// A text or a number as it stands on a command line.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        // More than 128 bits are too much for every setting, whichever way they are written.
        DeValue::Integer(number) => Some(
            i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |number| number.to_string()),
        ),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// What is wrong with one argument, taken by itself.
fn mistake(command: &Command, name: &str, argument: &OsString) -> Option<String> {
    let error = command.clone().try_get_matches_from([argument]).err()?;
    match error.kind() {
        // These are about several together, and will be seen when all are there.
        ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => None,
        ErrorKind::ValueValidation => {
            let why = error.source().map_or_else(|| first_line(&error), ToString::to_string);
            Some(format!("{name}: {why}"))
        }
        ErrorKind::InvalidValue => Some(format!("{name}: {}", none_of(&error))),
        _ => Some(format!("{name}: {}", first_line(&error))),
    }
}

/// A value that is none of those there are.
fn none_of(error: &clap::Error) -> String {
    let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) else {
        return first_line(error);
    };
    let hint = match error.get(ContextKind::SuggestedValue) {
        Some(ContextValue::String(nearest)) => format!("; did you mean '{nearest}'?"),
        _ => String::new(),
    };
    format!("one of {} is expected{hint}", valid.join(", "))
}

/// clap's message without its layout.
fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default();
    message.strip_prefix("error: ").unwrap_or(message).split_whitespace().collect::<Vec<_>>().join(" ")
}
