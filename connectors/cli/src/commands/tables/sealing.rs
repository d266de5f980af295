//! Rows whose protected columns are sealed to the reader's key (`read --seal-to`).

use std::io;

use sealflow::columns::{Found, Locator, splice};
use sealflow::flow::hybrid::AnswerKey;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::policy::{ColumnPath, Root, Segment};
use sealflow::table::{KEY_COLUMN, OpenTable};

/// Seals what a file shows of its protected columns, but for those that the enclave worker has sealed to the reader.
pub(super) struct RowSealing {
    to: RsaPublicJwk,
    dataset: String,
    locator: Locator,
    labels: Vec<String>,
}

impl RowSealing {
    /// For the columns of `table` that are sealed or have keys of their own; `None` if that cannot be done.
    pub(super) fn new(table: &OpenTable, to: &RsaPublicJwk) -> Option<Self> {
        let dataset = &table.claims()?.dataset;
        let (mut paths, mut labels) = (Vec::new(), Vec::new());
        for leaf in table.leaves().iter().filter(|leaf| !leaf.is_by_worker) {
            let sealed = leaf.leaf.sealed.as_ref().map(|sealed| sealed.label.clone());
            if let Some(label) = leaf.label.clone().or(sealed) {
                paths.push(in_rows(&leaf.leaf.column));
                labels.push(label);
            }
        }
        Some(Self {
            to: to.clone(),
            dataset: dataset.clone(),
            locator: Locator::new(&paths, &[]).ok()?,
            labels,
        })
    }

    /// Lines of JSON with these columns sealed; nulls stay.
    pub(super) fn lines(&self, lines: &[u8]) -> io::Result<Vec<u8>> {
        // One for each batch: it seals so many values and no more.
        let key = AnswerKey::new(&self.to, &self.dataset).map_err(cannot)?;
        let mut found = Found::default();
        let mut out = Vec::with_capacity(lines.len() * 2);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.locator.locate(line, &mut found).map_err(cannot)?;
            let mut sealed = Vec::with_capacity(found.hits.len());
            for hit in &found.hits {
                let value = &line[hit.range()];
                if value != b"null" {
                    let label = &self.labels[usize::from(hit.column)];
                    let jwe = key.seal(label, value).map_err(cannot)?;
                    sealed.push((hit.range(), format!("\"{jwe}\"")));
                }
            }
            splice(
                line,
                sealed.iter().map(|(range, text)| (range.clone(), text.as_bytes())),
                &mut out,
            );
        }
        Ok(out)
    }
}

/// Where a column stands in rows: the key has a name of its own there.
fn in_rows(column: &ColumnPath) -> ColumnPath {
    match column.root() {
        Root::Key => ColumnPath::into_value(vec![Segment::Name(KEY_COLUMN.to_owned())]),
        _ => column.clone(),
    }
}

/// The library's texts are not repeated: some of them hold the value that they are about.
fn cannot<E>(_: E) -> io::Error {
    io::Error::other("rows cannot be sealed")
}
