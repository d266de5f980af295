//! Dead letters of a pipeline, from its topic and its folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealflow::pipeline::{DeadLetter, Headers, Position, Record, Timestamp};
use sealflow_kafka::{Letters, read_letters};

use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than any message of a broker with its default limits, in the text form.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// One letter and where it lies.
pub(super) struct Found {
    pub(super) letter: DeadLetter,
    /// The record, or file, that the letter came in.
    pub(super) message: Record,
    /// `TOPIC/PARTITION/OFFSET` of the dead-letter topic, or the file.
    pub(super) at: String,
}

/// Calls `each` for every letter of the topic. What is no letter is counted and returned.
pub(super) async fn of_topic(
    config: &PipelineConfig,
    which: Letters,
    mut each: impl FnMut(Found) + Send + 'static,
) -> Result<u64> {
    let kafka = config.kafka();
    let group = kafka.source.group.clone().unwrap_or_else(|| config.name.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let mut foreign = 0;
        let read = read_letters(&kafka, &group, which, PATIENCE, |message| {
            match message.value.as_deref().map(DeadLetter::from_json) {
                Some(Ok(letter)) => each(Found {
                    letter,
                    message: message.clone(),
                    at: message.position.to_string(),
                }),
                _ => foreign += 1,
            }
        });
        read.map(|()| foreign)
    });
    let read = reading.await.map_err(|_| {
        Failure::new(
            Exit::Internal,
            "reading dead letters panicked",
            "this is a bug of sealflow: please report it",
        )
    })?;
    Ok(read?)
}

/// The files of the folder of oversize letters, in order of topic, partition and offset.
pub(super) fn files(config: &PipelineConfig) -> Result<Vec<PathBuf>> {
    let folder = config.dead_letters.as_ref().and_then(|dead| dead.oversize.as_deref());
    let Some(folder) = folder.filter(|folder| folder.exists()) else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for topic in entries(folder)?.iter().filter(|path| path.is_dir()) {
        for partition in entries(topic)?.iter().filter(|path| path.is_dir()) {
            let letters = entries(partition)?.into_iter();
            files.extend(letters.filter(|path| path.extension().is_some_and(|extension| extension == "json")));
        }
    }
    let number = |path: &Path| -> i64 {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.split('.')
            .next()
            .and_then(|offset| offset.parse().ok())
            .unwrap_or_default()
    };
    files.sort_by_key(|path| (path.parent().map(Path::to_owned), number(path)));
    Ok(files)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| Failure::io("read", folder, &error);
    let entries = fs::read_dir(folder).map_err(failed)?;
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

/// The letter in a file of the folder.
pub(super) fn of_file(path: &Path) -> Result<Found> {
    let json = crate::files::read_capped(path, MAX_FILE_BYTES)?;
    let letter = DeadLetter::from_json(&json).map_err(|error| {
        let help = "move it away: the folder is for dead letters only";
        Failure::new(Exit::Data, format_args!("{}: {error}", path.display()), help)
    })?;
    let position = Position {
        topic: letter.topic.as_str().into(),
        partition: letter.partition,
        offset: letter.offset,
    };
    Ok(Found {
        message: Record {
            position,
            timestamp: Timestamp::None,
            key: None,
            value: Some(json.into()),
            // Its envelope is in the catalogue.
            headers: Headers::new(),
        },
        letter,
        at: path.display().to_string(),
    })
}
