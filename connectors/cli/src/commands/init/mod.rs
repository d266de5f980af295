//! x
mod classify;
mod files;
mod propose;
