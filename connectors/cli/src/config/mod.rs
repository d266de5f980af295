//! The files of pipelines and of the reading service: their models, how they are read, and what is checked beyond their form.

#[cfg(test)]
mod bad_configurations;
mod check;
mod interpolate;
mod load;
mod pipeline;
mod secrets;
mod service;
mod table;

pub(crate) use interpolate::Environment;
pub(crate) use load::{load, load_service, yaml_failure};
pub(crate) use pipeline::{Mode, PipelineConfig};
pub(crate) use service::ServiceConfig;
pub(crate) use table::TableTarget;
