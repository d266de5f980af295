//! `${NAME}` and `SECRET[backend.name]` in the text values of a configuration.
//!
//! Values are put in after parsing, so that nothing in them is ever read as YAML; and messages name the
//! placeholder, never what it stands for.

use std::collections::BTreeMap;

use sealflow::policy::KeyPath;
use serde_json::Value;
use zeroize::Zeroizing;

use super::secrets::Secrets;

/// Where `${NAME}` and `SECRET[env.NAME]` are looked up.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process's own; variables that are no UTF-8 do not count.
    pub(crate) fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        )
    }

    /// One variable.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// These variables only.
    #[cfg(test)]
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }
}

/// A placeholder that could not be filled.
pub(crate) struct Unfilled {
    /// Where it stands.
    pub(crate) place: KeyPath,
    /// What is wrong, naming the placeholder.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
}

/// Whether the text has a placeholder at all.
pub(crate) fn has_placeholder(text: &str) -> bool {
    text.contains("${") || text.contains("SECRET[")
}

/// Fills every placeholder in the strings of `tree`.
pub(crate) fn fill(tree: &mut Value, secrets: &Secrets<'_>) -> Result<(), Unfilled> {
    fill_below(tree, &KeyPath::root(), secrets)
}

fn fill_below(node: &mut Value, place: &KeyPath, secrets: &Secrets<'_>) -> Result<(), Unfilled> {
    match node {
        Value::String(text) if has_placeholder(text) => {
            *text = filled(text, secrets).map_err(|(message, help)| Unfilled {
                place: place.clone(),
                message,
                help,
            })?;
            Ok(())
        }
        Value::Array(list) => list
            .iter_mut()
            .enumerate()
            .try_for_each(|(n, child)| fill_below(child, &place.index(n), secrets)),
        Value::Object(map) => map
            .iter_mut()
            // What says where secrets are cannot hold one, nor may `$` in a command mean something here.
            .filter(|(name, _)| !(*place == KeyPath::root() && *name == "secrets"))
            .try_for_each(|(name, child)| fill_below(child, &place.key(name), secrets)),
        _ => Ok(()),
    }
}

/// Message and help of a placeholder that stands for nothing.
pub(super) type Unknown = (String, String);

/// One pass from left to right: what is put in is not looked at again.
fn filled(text: &str, secrets: &Secrets<'_>) -> Result<String, Unknown> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let variable = rest.find("${").map(|at| (at, "${", "}"));
        let secret = rest.find("SECRET[").map(|at| (at, "SECRET[", "]"));
        let Some((at, open, close)) = [variable, secret].into_iter().flatten().min() else {
            out.push_str(rest);
            return Ok(out);
        };
        let inside = &rest[at + open.len()..];
        let end = inside.find(close).ok_or_else(|| {
            (
                format!("`{open}` without `{close}`"),
                "write `${NAME}` or `SECRET[backend.name]`; `$$` is not needed".to_owned(),
            )
        })?;
        out.push_str(&rest[..at]);
        let name = &inside[..end];
        if open == "${" {
            out.push_str(&variable_value(name, secrets)?);
        } else {
            out.push_str(&secret_value(name, secrets)?);
        }
        rest = &inside[end + close.len()..];
    }
}

/// `NAME` or `NAME:-default`.
fn variable_value(inside: &str, secrets: &Secrets<'_>) -> Result<String, Unknown> {
    let (name, default) = inside
        .split_once(":-")
        .map_or((inside, None), |(name, default)| (name, Some(default)));
    if !is_name(name) {
        let message = "`${` is not followed by a variable's name".to_owned();
        return Err((message, "write `${NAME}` or `${NAME:-default}`".to_owned()));
    }
    let value = secrets.variable(name)?.or(default);
    value.map(str::to_owned).ok_or_else(|| {
        (
            format!("the environment variable {name} is not set"),
            format!("set it, or give a default: `${{{name}:-…}}`"),
        )
    })
}

fn secret_value(inside: &str, secrets: &Secrets<'_>) -> Result<Zeroizing<String>, Unknown> {
    let (backend, name) = inside.split_once('.').unwrap_or((inside, ""));
    if !is_name(name) {
        let message = "`SECRET[` is not followed by backend and name".to_owned();
        return Err((message, "write `SECRET[env.NAME]` or `SECRET[file.NAME]`".to_owned()));
    }
    secrets.secret(backend, name)
}

/// Names of variables and secrets: no slash, so that no secret leaves its folder; no dash in front, so that none is
/// an option of a command.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= 128 && !name.starts_with(['.', '-']) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::secrets::SecretsConfig;
    use super::*;

    fn fill_text(text: &str, environment: &[(&str, &str)], folder: &Path) -> Result<String, Unknown> {
        let environment = Environment::of(environment);
        let config = SecretsConfig {
            folder: folder.to_owned(),
            env_prefixes: None,
            ..SecretsConfig::default()
        };
        filled(text, &Secrets::new(&environment, config, Path::new("")))
    }

    #[test]
    fn placeholders_are_filled_from_environment_and_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kafka-password"), "s3cret\n").unwrap();
        let text = "${HOST}:${PORT:-9092} SECRET[file.kafka-password] SECRET[env.TOKEN]";
        let filled = fill_text(text, &[("HOST", "broker"), ("TOKEN", "t0ken")], folder.path());
        assert_eq!(filled.ok().as_deref(), Some("broker:9092 s3cret t0ken"));
    }

    #[test]
    fn what_was_put_in_is_not_filled_again() {
        let filled = fill_text("${A}", &[("A", "SECRET[env.B]"), ("B", "no")], Path::new("/"));
        assert_eq!(filled.ok().as_deref(), Some("SECRET[env.B]"));
    }

    #[test]
    fn a_secret_cannot_be_outside_its_folder() {
        for name in [
            "SECRET[file.../etc/passwd]",
            "SECRET[file./etc/passwd]",
            "SECRET[file..hidden]",
            "SECRET[vault.x]",
            "SECRET[env]",
            "SECRET[file.-rf]",
        ] {
            assert!(fill_text(name, &[], Path::new("/")).is_err(), "{name}");
        }
    }

    #[test]
    fn only_variables_of_the_allowed_prefixes_are_read() {
        let environment = Environment::of(&[("APP_HOST", "broker"), ("AWS_SECRET_ACCESS_KEY", "canary")]);
        let config = SecretsConfig {
            env_prefixes: Some(vec!["APP_".to_owned()]),
            ..SecretsConfig::default()
        };
        let secrets = Secrets::new(&environment, config, Path::new(""));
        assert_eq!(filled("${APP_HOST}", &secrets).ok().as_deref(), Some("broker"));
        for text in [
            "${AWS_SECRET_ACCESS_KEY}",
            "${AWS_SECRET_ACCESS_KEY:-x}",
            "SECRET[env.AWS_SECRET_ACCESS_KEY]",
        ] {
            let (message, help) = filled(text, &secrets).unwrap_err();
            assert!(
                message.contains("may not be read") && help.contains("env_prefixes"),
                "{message}"
            );
        }
    }
}
