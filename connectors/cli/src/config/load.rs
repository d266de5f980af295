//! Reads a pipeline file: parse, fill placeholders, check.

use std::path::{Path, PathBuf};

use sealflow::policy::KeyPath;
use sealflow::policy::yaml::{YamlError, from_yaml};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::check::check;
use super::interpolate::{Environment, Secrets, fill, has_placeholder};
use super::pipeline::{PipelineConfig, SecretsConfig};
use crate::failure::{Failure, Result};
use crate::files;

/// Reads, fills and checks the pipeline file at `path`; its folders are resolved against where it stands.
pub(crate) fn load(path: &Path, environment: &Environment) -> Result<PipelineConfig> {
    let text = files::read_text(path).map_err(|failure| Failure::config(failure.message, failure.help))?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut config = parse(&text, &base, environment).map_err(|error| yaml_failure(path, &error))?;
    config.catalogue.folder = base.join(&config.catalogue.folder);
    Ok(config)
}

/// The failure of a configuration file: file, key path, line, what, help; exit code 78.
pub(crate) fn yaml_failure(path: &Path, error: &YamlError) -> Failure {
    Failure::config(format_args!("{}: {error}", path.display()), &error.help)
}

fn parse(text: &str, base: &Path, environment: &Environment) -> Result<PipelineConfig, YamlError> {
    let config = parse_filled(text, base, environment)?;
    check(&config).map_err(|wrong| located(text, &wrong.path, wrong.message, wrong.help))?;
    Ok(config)
}

fn parse_filled<T: DeserializeOwned>(text: &str, base: &Path, environment: &Environment) -> Result<T, YamlError> {
    if !has_placeholder(text) {
        return from_yaml(text);
    }
    let mut tree: Value = from_yaml(text)?;
    let secrets = Secrets {
        environment,
        folder: base.join(secrets_folder(&tree)),
    };
    fill(&mut tree, &secrets)
        .map_err(|unfilled| YamlError::at(text, &unfilled.place, unfilled.message, unfilled.help))?;
    // JSON is YAML: the same parser gives the same messages; only the lines are those of the file as written.
    from_yaml(&tree.to_string()).map_err(|error| located(text, &error.path, error.message, error.help))
}

/// The folder of secrets has to be known before anything is filled.
fn secrets_folder(tree: &Value) -> PathBuf {
    let written = tree
        .get("secrets")
        .and_then(|secrets| secrets.get("folder"))
        .and_then(Value::as_str);
    written.map_or_else(|| SecretsConfig::default().folder, PathBuf::from)
}

/// The error of the place that messages write as `path`, with its line and column in `text`.
fn located(text: &str, path: &str, message: String, help: String) -> YamlError {
    // It parsed before, else there would be no place to speak of.
    let tree: Value = from_yaml(text).unwrap_or_default();
    let place = place_of(&tree, &KeyPath::root(), path).unwrap_or_default();
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
