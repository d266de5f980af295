//! Signed documents and keys: no input panics, nothing verifies that was not signed, keys read as they print.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use sealflow::jose::{JwsType, PrivateJwk, PublicJwk, SelfSigned};

/// Right for no message: whatever verifies with it was forged.
const SIGNATURE: [u8; 64] = [7; 64];

fuzz_target!(|bytes: &[u8]| {
    if let Ok(key) = PublicJwk::from_json(bytes) {
        assert_eq!(PublicJwk::from_json(key.to_json().as_bytes()), Ok(key));
    }
    if let Ok(key) = PrivateJwk::from_json(bytes) {
        let json = key.to_private_json();
        assert_eq!(
            PrivateJwk::from_json(json.expose()).map(|key| key.thumbprint()),
            Ok(key.thumbprint())
        );
    }
    // As a header, where base64url is no obstacle.
    let header = URL_SAFE_NO_PAD.encode(bytes);
    let jws = format!("{header}.YQ.{}", URL_SAFE_NO_PAD.encode(SIGNATURE));
    for typ in [JwsType::Policy, JwsType::Domain] {
        assert!(SelfSigned::verify(&jws, typ).is_err());
    }
    // As a whole: the seed verifies, and nothing else that payload could be.
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(signed) = SelfSigned::verify(text, JwsType::Policy)
    {
        let payload = text.split('.').nth(1).unwrap_or_default();
        assert_eq!(URL_SAFE_NO_PAD.encode(signed.into_payload()), payload);
    }
});
