//! The three flows, one column sealer each. Here: direct.
