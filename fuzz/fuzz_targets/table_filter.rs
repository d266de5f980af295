//! Filters (`--where`): no text panics, alone or on rows; a filter keeps no more rows than there are, its `{:?}` shows no
//! constant, and no refusal is without a word.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sealflow::table::{Filter, OpenTable, Query, TableError};
use sealflow_fuzz::{ENCRYPTED, PATH, run};
use std::sync::LazyLock;

static OPEN: LazyLock<OpenTable> = LazyLock::new(|| {
    let table = &*ENCRYPTED;
    run(table.reader.open(Arc::new(table.file.clone()), PATH, table.asking())).unwrap()
});

fuzz_target!(|text: &str| {
    let filter = match Filter::parse(text) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(!error.to_string().is_empty() && !error.help().is_empty());
            return;
        }
    };
    let query = Query {
        filter,
        ..Query::default()
    };
    let Ok(mut rows) = OPEN.rows(&query, ENCRYPTED.asking(), "a.parquet") else {
        return;
    };
    let count = run(async {
        let mut count = 0;
        loop {
            match rows.next().await {
                Ok(Some(batch)) => count += batch.num_rows(),
                Ok(None) => return count,
                // The file is whole.
                Err(TableError::Damaged) => panic!("{text}: damaged"),
                Err(_) => return count,
            }
        }
    });
    assert!(count <= 12);
});
