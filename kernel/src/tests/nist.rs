//! NIST's CAVP vectors for AES-256-GCM with nonces of 96 and tags of 128 bits, sealed and opened.

use super::opening::opened;
use super::*;

const SEALED: &str = include_str!("../../tests/vectors/gcmEncryptExtIV256.rsp");
const OPENED: &str = include_str!("../../tests/vectors/gcmDecrypt256.rsp");

struct Case {
    key: [u8; KEY_LEN],
    aad: Vec<u8>,
    /// Nothing where it must not open.
    plain: Option<Vec<u8>>,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

fn cases(file: &str) -> Vec<Case> {
    let blocks = file.split("\n\n").filter(|block| block.starts_with("Count"));
    let cases = blocks.map(|block| {
        let field = |name: &str| {
            let line = block
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(" ="))?;
            let (pairs, _) = line.trim().as_bytes().as_chunks::<2>();
            let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            Some(pairs.iter().map(byte).collect::<Vec<_>>())
        };
        let [key, iv, aad, text, tag] = ["Key", "IV", "AAD", "CT", "Tag"].map(|name| field(name).unwrap());
        Case {
            key: key.try_into().unwrap(),
            aad,
            plain: field("PT"),
            sealed: [&PREFIX[..], &iv, &text, &tag].concat(),
            nonce: iv.try_into().unwrap(),
        }
    });
    cases.collect()
}

#[test]
fn what_nist_has_sealed_is_sealed_so() {
    let cases = cases(SEALED);
    assert_eq!(cases.len(), 375);
    for case in &cases {
        for kernel in Kernel::all() {
            let plain = [Some(case.plain.clone().unwrap())];
            let got = sealed(&Cipher::on(kernel, &case.key), case.nonce, &case.aad, None, &plain);
            assert_eq!(got, case.sealed, "{kernel:?}");
        }
    }
}

#[test]
fn what_nist_has_sealed_opens_and_what_it_has_spoilt_does_not() {
    let cases: Vec<_> = cases(OPENED).into_iter().chain(cases(SEALED)).collect();
    let spoilt = cases.iter().filter(|case| case.plain.is_none()).count();
    assert_eq!((cases.len(), spoilt), (750, 191));
    for case in &cases {
        for kernel in Kernel::all() {
            // Four fill the lanes of a register, six do not.
            for count in [1, 4, 6] {
                let column = vec![Some(case.sealed.clone()); count];
                let got = opened(&Cipher::on(kernel, &case.key), &case.aad, None, &column);
                let zeros = vec![0; case.sealed.len() - OVERHEAD];
                let plain = case.plain.as_ref().unwrap_or(&zeros).repeat(count);
                assert_eq!(got, (plain, vec![case.plain.is_some(); count]), "{kernel:?}");
            }
        }
    }
}
