//! What clients seal, and the keys that they bring: no text panics as JWE, header, place or RSA key; what opens under a key is what
//! was sealed under it; a key that is read comes back the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sealflow::flow::hybrid::values::{Found, check_place};
use sealflow::jose::is_client_name;
use sealflow::jose::jwe::{ContentKey, Jwe, JweHeader, session_id};
use sealflow::jose::mac::{MacHeader, MacJws, MacKey};
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::policy::Policy;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let yaml = br#"
dataset: payments
version: 1
keys: { k: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab" } }
client: { keys: { web: { arn: "arn:aws:kms:eu-central-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab" } } }
acls: { a: {} }
columns: [{ path: card, key: k, acl: a, flow: hybrid }]
previous: { labels: { pan: card } }
"#;
    Policy::parse(yaml).unwrap()
});
/// Row 7, as the policy would bind it.
const ROW: &[u8] = &[3, 7];

fuzz_target!(|bytes: &[u8]| {
    for key in [
        RsaPublicJwk::from_json(bytes).ok(),
        RsaPublicJwk::from_spki_der(bytes).ok(),
    ]
    .into_iter()
    .flatten()
    {
        assert!((2_048..=4_096).contains(&key.bits()));
        assert_eq!(RsaPublicJwk::from_json(key.to_published_json().as_bytes()), Ok(key));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    assert_eq!(session_id(text).len(), 22);
    let key = ContentKey::new(&[7; 32]);
    // As it stands: nobody seals under that key, so that nothing of it opens.
    if let Ok(jwe) = Jwe::parse(text) {
        let _ = jwe.encrypted_key();
        let mut out = b"before".to_vec();
        assert!(key.open(&jwe, &mut out).is_err() && out == b"before");
        if let Ok(header) = jwe.header() {
            for row in [None, Some(ROW)] {
                let found = Found {
                    policy: &POLICY,
                    label: "card",
                    row,
                    client: None,
                };
                let is_there = check_place(&header, found).is_ok();
                assert!(!is_there || header.dataset.as_deref() == Some("payments"));
                assert!(!is_there || matches!(header.label.as_deref(), Some("card" | "pan")));
            }
        }
    }
    // As what proves who sealed: nothing was signed with the first key, so that nothing verifies; with the second the seeds
    // and what follows were.
    if let Ok(jws) = MacJws::parse(text) {
        assert!(!MacKey::new(&[8; 32]).verifies(&jws, text) && is_client_name(&jws.header.client));
    }
    let mac = MacKey::new(&[7; 32]);
    let named = MacHeader::once("web-7", 7, text);
    let signed = mac.sign(&named, text);
    if let Ok(jws) = MacJws::parse(&signed) {
        assert!(mac.verifies(&jws, &signed) && jws.jwe() == text && jws.header == named);
    }
    // As what a client says of its value, and as the value.
    let header = JweHeader::direct("kid", "payments", text, Some(text));
    let found = Found {
        policy: &POLICY,
        label: "card",
        row: Some(ROW),
        client: Some("web-7"),
    };
    let _ = check_place(&header, found);
    let part = header.to_part();
    // A header that nobody reads is not sealed under.
    let Ok(sealed) = key.seal(&part, &[], bytes) else {
        assert!(part.len() > 2_048);
        return;
    };
    let jwe = Jwe::parse(&sealed).unwrap();
    assert_eq!(jwe.header(), Ok(header));
    assert_eq!(jwe.plaintext_len(), bytes.len());
    let mut out = Vec::new();
    key.open(&jwe, &mut out).unwrap();
    assert_eq!(out, bytes);
});
