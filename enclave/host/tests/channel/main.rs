//! Host and worker over a channel, in one process: what clients seal goes over and comes back sealed; whatever breaks the protocol ends
//! the connection, and nobody is believed who does not prove what they are.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

mod belief;
mod bench;
mod columns;
mod keys;
mod protocol;
mod readers;
mod supervisor;
