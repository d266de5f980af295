//! The catalogue on object_store.
