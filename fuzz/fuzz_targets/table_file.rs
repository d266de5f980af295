//! Files of tables, to the last row: arbitrary bytes; real files with some bytes changed, also where a footer is not encrypted;
//! and real files whose footer was opened with its key, changed and closed again, as every reader of a table can do it. No
//! panic outside of what is contained, no memory without bound, and no more rows or values of protected columns than were
//! written.
#![no_main]

use std::sync::{Arc, LazyLock};

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sealflow::table::{Filter, LeafState, Query};
use sealflow_fuzz::{ENCRYPTED, PATH, SIGNED, Table, footer_start, position, run};

fuzz_target!(|input: &[u8]| {
    let Some((kind, edits)) = input.split_first() else {
        return;
    };
    let query = &QUERIES[usize::from(kind / 4) % QUERIES.len()];
    match kind % 4 {
        0 => read(&ENCRYPTED, edits.to_vec(), query),
        1 => read(&ENCRYPTED, changed(&ENCRYPTED.file, edits), query),
        2 => read(&SIGNED, changed(&SIGNED.file, edits), query),
        _ => read(&ENCRYPTED, FOOTER.close(&changed(&FOOTER.thrift, edits)), query),
    }
});

/// The bytes with some changed: each four of the edits say where (16 bits), what to do and with which byte.
fn changed(bytes: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for edit in edits.chunks_exact(4).take(64) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % out.len().max(1);
        match edit[2] % 4 {
            _ if out.is_empty() => {}
            0 => out[at] ^= edit[3],
            1 => out[at] = edit[3],
            2 => out.insert(at, edit[3]),
            _ => drop(out.remove(at)),
        }
    }
    out
}

/// All rows; the first, by page indexes; those that bounds of row groups and of pages do not rule out.
static QUERIES: LazyLock<[Query; 3]> = LazyLock::new(|| {
    let filtered = |filter: &str| Query {
        filter: Filter::parse(filter).unwrap(),
        ..Query::default()
    };
    let first = Query {
        limit: Some(1),
        ..Query::default()
    };
    [
        Query::default(),
        first,
        filtered("id > 3 and price < 20 and card > '4111-2'"),
    ]
});

fn read(table: &Table, file: Vec<u8>, query: &Query) {
    let file = Bytes::from(file);
    run(async {
        let Ok(open) = table.reader.open(Arc::new(file), PATH, table.asking()).await else {
            return;
        };
        for leaf in open.leaves() {
            // A column of the policy is never shown under the footer's key.
            let is_protected = leaf.leaf.column.to_string() == "card";
            assert!(!is_protected || leaf.label.is_some() || !matches!(leaf.state, LeafState::Shown { .. }));
        }
        let Ok(mut rows) = open.rows(query, table.asking(), "a.parquet") else {
            return;
        };
        let mut count = 0;
        while let Ok(Some(batch)) = rows.next().await {
            count += batch.num_rows();
            assert!(count <= 1 << 20);
        }
    });
}

struct Footer {
    crypto: Vec<u8>,
    thrift: Vec<u8>,
    cipher: Aes256Gcm,
    aad: Vec<u8>,
}

static FOOTER: LazyLock<Footer> = LazyLock::new(Footer::open);

impl Footer {
    fn open() -> Self {
        let file = &ENCRYPTED.file;
        let area = &file[footer_start(file)..file.len() - 8];
        // The prefix of the additional data is a binary, and behind it are eight bytes of the file's own.
        let start = position(area, b"sealflow/1").unwrap();
        let length = usize::from(area[start - 1]);
        let prefix = &area[start..start + length];
        assert_eq!(area[start + length..start + length + 2], [0x18, 8]);
        let unique = &area[start + length + 2..start + length + 10];
        let aad = [prefix, unique, &[0]].concat();
        let cipher = Aes256Gcm::new_from_slice(&ENCRYPTED.footer_key()).unwrap();
        // Behind the material ends the struct, and the module begins with its length.
        let material = position(area, b"\"sealflow\":{").unwrap();
        let (split, thrift) = (material..area.len() - 32)
            .filter(|at| area[*at] == 0)
            .find_map(|at| {
                let module = &area[at + 1..];
                let (nonce, text) = module.get(4..)?.split_first_chunk::<12>()?;
                let payload = Payload { msg: text, aad: &aad };
                Some((at + 1, cipher.decrypt(&Nonce::from(*nonce), payload).ok()?))
            })
            .unwrap();
        Self {
            crypto: area[..split].to_vec(),
            thrift,
            cipher,
            aad,
        }
    }

    fn close(&self, thrift: &[u8]) -> Vec<u8> {
        let file = &ENCRYPTED.file;
        let payload = Payload {
            msg: thrift,
            aad: &self.aad,
        };
        let nonce = [0x77; 12];
        let text = self.cipher.encrypt(&Nonce::from(nonce), payload).unwrap();
        let length = u32::try_from(12 + text.len()).unwrap();
        let footer = [&self.crypto[..], &length.to_le_bytes(), &nonce, &text].concat();
        let mut out = file[..footer_start(file)].to_vec();
        out.extend_from_slice(&footer);
        out.extend_from_slice(&u32::try_from(footer.len()).unwrap().to_le_bytes());
        out.extend_from_slice(b"PARE");
        out
    }
}
