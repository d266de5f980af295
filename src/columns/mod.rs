//! Fields of JSON records: found, taken out as columns, spliced back, every other byte untouched.
