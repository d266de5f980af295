//! x
mod checklist;
