//! The pipeline file: its model, how it is read, and what is checked beyond its form.

#[cfg(test)]
mod bad_configurations;
mod check;
mod interpolate;
mod load;
mod pipeline;
mod secrets;

pub(crate) use interpolate::Environment;
pub(crate) use load::{load, yaml_failure};
pub(crate) use pipeline::{Mode, PipelineConfig};
