//! Benchmarks, never timed tests.
