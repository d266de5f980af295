//! Reads the file of a pipeline or service: parse, fill placeholders, check.

use std::path::Path;

use sealflow::policy::KeyPath;
use sealflow::policy::yaml::{YamlError, from_yaml};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use super::check::{self, Wrong};
use super::interpolate::{Environment, fill, has_placeholder};
use super::pipeline::PipelineConfig;
use super::secrets::{Secrets, SecretsConfig};
use super::service::ServiceConfig;
use crate::failure::{Failure, Result};
use crate::{files, redact};

/// Reads, fills and checks the pipeline file at `path`; its folders are resolved against where it stands.
pub(crate) fn load(path: &Path, environment: &Environment) -> Result<PipelineConfig> {
    let text = files::read_text(path).map_err(|failure| Failure::config(failure.message, failure.help))?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let parsed = parse(&text, &base, environment, check::check);
    let mut config = parsed.map_err(|error| yaml_failure(path, &error))?;
    config.catalogue.resolve(&base);
    if let Some(table) = &mut config.target.table {
        table.location = table.location.clone().resolved(&base);
        table.schema = base.join(&table.schema);
    }
    if let Some(audit) = &mut config.audit {
        for path in [&mut audit.key, &mut audit.checkpoints]
            .into_iter()
            .chain(&mut audit.path)
        {
            *path = base.join(&*path);
        }
    }
    if let Some(folder) = config.dead_letters.as_mut().and_then(|dead| dead.oversize.as_mut()) {
        *folder = base.join(&*folder);
    }
    Ok(config)
}

/// The same for the file of a service.
pub(crate) fn load_service(path: &Path, environment: &Environment) -> Result<ServiceConfig> {
    let text = files::read_text(path).map_err(|failure| Failure::config(failure.message, failure.help))?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let parsed = parse(&text, &base, environment, ServiceConfig::check);
    let mut config = parsed.map_err(|error| yaml_failure(path, &error))?;
    config.resolve(&base);
    Ok(config)
}

/// The failure of a configuration file: file, key path, line, what, help; exit code 78.
pub(crate) fn yaml_failure(path: &Path, error: &YamlError) -> Failure {
    Failure::config(format_args!("{}: {error}", path.display()), &error.help)
}

fn parse<T: DeserializeOwned>(
    text: &str,
    base: &Path,
    environment: &Environment,
    check: impl FnOnce(&T) -> Result<(), Wrong>,
) -> Result<T, YamlError> {
    let config = parse_filled(text, base, environment)?;
    check(&config).map_err(|wrong| located(text, &wrong.path, wrong.message, wrong.help))?;
    Ok(config)
}

fn parse_filled<T: DeserializeOwned>(text: &str, base: &Path, environment: &Environment) -> Result<T, YamlError> {
    hide_credentials(environment);
    // What is no YAML at all is said by the typed parser, which knows what was expected.
    if let Ok(tree) = from_yaml::<Value>(text) {
        hide_secrets(&tree, false);
    }
    if !has_placeholder(text) {
        return from_yaml(text);
    }
    let mut tree: Value = from_yaml(text)?;
    let secrets = Secrets::new(environment, backends(text, &tree)?, base);
    fill(&mut tree, &secrets)
        .map_err(|unfilled| YamlError::at(text, &unfilled.place, unfilled.message, unfilled.help))?;
    hide_secrets(&tree, false);
    let filled = Zeroizing::new(tree.to_string());
    // JSON is YAML: the same parser gives the same messages; only the lines are those of the file as written.
    from_yaml(&filled).map_err(|error| located(text, &error.path, error.message, error.help))
}

/// The backends of secrets have to be known before anything is filled.
fn backends(text: &str, tree: &Value) -> Result<SecretsConfig, YamlError> {
    /// The rest of the file is read later, when it is filled.
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        secrets: SecretsConfig,
    }
    let place = KeyPath::root().key("secrets");
    if tree
        .get("secrets")
        .is_some_and(|section| has_placeholder(&section.to_string()))
    {
        let message = "placeholders are not filled in this section".to_owned();
        let help = "write paths and commands as they are; a command reads the environment itself".to_owned();
        return Err(YamlError::at(text, &place, message, help));
    }
    let Head { secrets } = from_yaml(text)?;
    match secrets.check() {
        Ok(()) => Ok(secrets),
        Err((path, message, help)) => Err(located(text, &format!("{place}.{path}"), message, help)),
    }
}

/// Credentials that are taken from the environment without being named in the file.
fn hide_credentials(environment: &Environment) {
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        environment.get(name).into_iter().for_each(redact::hide);
    }
}

/// Hides what stands in the file itself under names of secrets, `below` one of them or not.
fn hide_secrets(node: &Value, below: bool) {
    const NAMES: [&str; 7] = [
        "password",
        "secret_access_key",
        "session_token",
        "client.secret",
        "ssl.key.pem",
        "sasl.oauthbearer.config",
        "assertion",
    ];
    match node {
        Value::String(text) if below && !has_placeholder(text) => redact::hide(text),
        Value::Array(list) => list.iter().for_each(|child| hide_secrets(child, below)),
        Value::Object(map) => map.iter().for_each(|(name, child)| {
            let secret = name == "headers" || name != "secrets" && NAMES.iter().any(|part| name.contains(part));
            hide_secrets(child, below || secret);
        }),
        _ => (),
    }
}

/// The error of the place that messages write as `path`, with its line and column in `text`. Messages may repeat words
/// and names, and where one was expected a secret may have been put.
fn located(text: &str, path: &str, message: String, help: String) -> YamlError {
    // It parsed before, else there would be no place to speak of.
    let tree: Value = from_yaml(text).unwrap_or_default();
    let place = place_of(&tree, &KeyPath::root(), path).unwrap_or_default();
    let [message, help] = [message, help].map(|line| redact::redacted(&line).into_owned());
    YamlError {
        path: path.to_owned(),
        ..YamlError::at(text, &place, message, help)
    }
}

/// The place in `tree` that is written as `path`, or the nearest one above it.
fn place_of(node: &Value, here: &KeyPath, path: &str) -> Option<KeyPath> {
    let written = here.to_string();
    if written == path {
        return Some(here.clone());
    }
    if !path.starts_with(&written) {
        return None;
    }
    let below = match node {
        Value::Object(map) => map
            .iter()
            .find_map(|(name, child)| place_of(child, &here.key(name), path)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(n, child)| place_of(child, &here.index(n), path)),
        _ => None,
    };
    below.or_else(|| Some(here.clone()))
}
