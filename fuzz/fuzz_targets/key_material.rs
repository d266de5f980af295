//! Key material of Parquet modules (PKMT1, JSON) as everybody reads it from a file's end: no panic, what is believed is of this
//! version, and a label is never larger than what it was read from.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sealflow::table::FileLabel;
use sealflow_fuzz::run;

fuzz_target!(|material: &[u8]| {
    // `FileCryptoMetaData` in the compact protocol of Thrift: AES_GCM_V1 with eight bytes of additional data, and the material.
    let mut crypto = b"\x1c\x1c\x28\x08fileuniq\x00\x00\x18".to_vec();
    let mut length = material.len();
    while length >= 128 {
        crypto.push((length % 128) as u8 | 128);
        length /= 128;
    }
    crypto.push(length as u8);
    crypto.extend_from_slice(material);
    crypto.push(0);
    // Some bytes where the footer would be.
    crypto.extend_from_slice(&[40, 0, 0, 0]);
    crypto.extend_from_slice(&[7; 40]);
    let mut file = b"PARE".to_vec();
    file.extend_from_slice(&crypto);
    file.extend_from_slice(&u32::try_from(crypto.len()).unwrap().to_le_bytes());
    file.extend_from_slice(b"PARE");
    let file = Bytes::from(file);
    match run(FileLabel::read(&file)) {
        Ok(label) => {
            let claims = &label.claims;
            assert!(claims.file.len() == 32 && !label.has_plaintext_footer);
            assert!(claims.dataset.len() + claims.partition.len() + label.master_key.len() <= material.len());
        }
        Err(error) => assert!(!error.to_string().is_empty() && !error.help().is_empty()),
    }
});
