//! The steps of a stretch that are not reading: asked of catalogue and store, side by side for all partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealflow::keys::{Catalogue, CatalogueError, Put};
use sealflow::pipeline::{StopKind, TransformError};
use sealflow::table::landing::{Edition, Landing, OpenFile, PlannedFile, Step, Whose};
use sealflow::table::{Claims, FileId, Origin};

use super::context::stopped;
use super::part::Part;
use crate::error::RunError;

/// Files that were begun, by their id.
pub(super) type Files = BTreeMap<FileId, Box<dyn OpenFile>>;

/// What a step came to.
pub(super) enum Answer {
    Listed(Result<Vec<String>, CatalogueError>),
    Looked(Result<Option<Vec<u8>>, CatalogueError>),
    Put(Result<Put, CatalogueError>),
    Probed(Vec<(FileId, Option<Claims>)>, Result<(), TransformError>),
    Closed(Result<Files, TransformError>),
    Finished(Vec<(FileId, Put, u64, u64)>, Result<(), TransformError>),
    /// Reading, or committing, which are done elsewhere.
    None,
}

/// What steps are done with.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) catalogue: Arc<dyn Catalogue>,
    pub(super) landing: Arc<dyn Landing>,
}

/// Does one step. `files` are those that it needs.
pub(super) async fn perform(services: Services, whose: Arc<Whose>, step: Step, mut files: Files) -> Answer {
    match step {
        Step::List { folder } => Answer::Listed(services.catalogue.list(&folder).await),
        Step::Look { path } => {
            failpoint!("land-look");
            Answer::Looked(services.catalogue.get(&path).await)
        }
        Step::Put { path, bytes } => {
            failpoint!("land-before-put");
            let put = services.catalogue.put_if_absent(&path, &bytes).await;
            failpoint!("land-after-put");
            Answer::Put(put)
        }
        Step::Probe { files } => {
            failpoint!("land-probe");
            let mut probed = Vec::new();
            for file in files {
                match services.landing.claims(&file.path(&whose)).await {
                    Ok(claims) => probed.push((file.id, claims)),
                    Err(error) => return Answer::Probed(probed, Err(error)),
                }
            }
            Answer::Probed(probed, Ok(()))
        }
        Step::Close { files: planned } => {
            failpoint!("land-before-close");
            Answer::Closed(close(&services, &whose, &planned, files).await)
        }
        Step::Finish { files: planned } => {
            let mut finished = Vec::new();
            for file in planned {
                let Some(open) = files.remove(&file.id) else {
                    return Answer::Finished(finished, Err(given_up()));
                };
                let (rows, bytes) = (open.rows(), open.sizes().0);
                failpoint!("land-before-finish");
                let put = open.finish().await;
                failpoint!("land-after-finish");
                match put {
                    Ok(put) => finished.push((file.id, put, rows, bytes)),
                    Err(error) => return Answer::Finished(finished, Err(error)),
                }
            }
            Answer::Finished(finished, Ok(()))
        }
        Step::Gather { .. } | Step::Rebuild { .. } | Step::Commit { .. } => Answer::None,
    }
}

/// Writes the footers. A file that no row came to is there all the same: the intent names it.
async fn close(
    services: &Services,
    whose: &Whose,
    planned: &[PlannedFile],
    mut files: Files,
) -> Result<Files, TransformError> {
    let mut closed = Files::new();
    if planned.is_empty() {
        return Ok(closed);
    }
    let edition: Arc<dyn Edition> = services.landing.edition().await?;
    for file in planned {
        let mut open = match files.remove(&file.id) {
            Some(open) => open,
            None => edition.begin(file, &file.path(whose)).await?,
        };
        let origin = Origin {
            schema: edition.version().1,
            topic: whose.topic.clone(),
            partition: whose.partition,
            first: file.first,
            last: file.last,
            rows: open.rows(),
        };
        open.close(&origin).await?;
        closed.insert(file.id, open);
    }
    Ok(closed)
}

fn given_up() -> TransformError {
    TransformError::Retry {
        reason: "a file was given up".to_owned(),
    }
}

/// Tells the stretch what its step came to. Returns why it has to wait, if it has.
pub(super) fn answer(part: &mut Part, answer: Answer) -> Result<Option<String>, RunError> {
    let waits = match answer {
        Answer::Listed(listed) => catalogue(listed)?.map(|paths| part.stretch.listed(&paths)),
        Answer::Looked(looked) => match catalogue(looked)? {
            Ok(found) => Ok(part.stretch.looked(found.as_deref()).map_err(|error| stopped(&error))?),
            Err(reason) => Err(reason),
        },
        Answer::Put(put) => catalogue(put)?.map(|put| part.stretch.put(put)),
        Answer::Probed(probed, result) => {
            for (id, claims) in probed {
                part.stretch
                    .probed(id, claims.as_ref())
                    .map_err(|error| stopped(&error))?;
            }
            passing(result)?
        }
        Answer::Closed(Ok(files)) => {
            part.files = files;
            part.stretch.closed();
            Ok(())
        }
        Answer::Closed(Err(error)) => {
            let passing = passing::<()>(Err(error))?;
            part.lost();
            passing
        }
        Answer::Finished(finished, result) => {
            for (id, put, rows, bytes) in finished {
                if put == Put::Created {
                    part.counted.files += 1;
                    part.counted.rows += rows;
                    part.counted.sent += bytes;
                }
                part.stretch.finished(id, put);
            }
            let passing = passing(result)?;
            if passing.is_err() {
                part.lost();
            }
            passing
        }
        Answer::None => Ok(()),
    };
    match part.stretch.step() {
        Step::Commit { .. } => part.files.clear(),
        _ if !part.stretch.has_files() => part.drop_files(),
        _ => {}
    }
    match waits {
        Ok(()) => {
            part.went_well();
            Ok(None)
        }
        Err(reason) => {
            part.later();
            Ok(Some(reason))
        }
    }
}

/// An outage waits; a refusal ends the run.
fn catalogue<T>(result: Result<T, CatalogueError>) -> Result<Result<T, String>, RunError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) if error.is_retryable() => Ok(Err(error.to_string())),
        Err(error @ CatalogueError::NotPermitted { .. }) => Err(RunError::stopped(
            StopKind::NotPermitted,
            error.to_string(),
            "let this process read, list and create objects below commits/ in the catalogue",
        )),
        Err(error) => Err(RunError::stopped(
            StopKind::Config,
            error.to_string(),
            "check the catalogue",
        )),
    }
}

/// The same for what a transform or store says.
pub(super) fn passing<T>(result: Result<T, TransformError>) -> Result<Result<T, String>, RunError> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(TransformError::Retry { reason }) => Ok(Err(reason)),
        Err(TransformError::Stop { kind, reason, help }) => Err(RunError::Stopped { kind, reason, help }),
        Err(error) => Err(RunError::stopped(StopKind::Internal, error.to_string(), "see the log")),
    }
}
