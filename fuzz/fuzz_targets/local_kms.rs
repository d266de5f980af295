//! What the local KMS reads from strangers: Authorization headers, presigned queries, ciphertext blobs, key policies. No panic, bounded, and
//! nothing that was not signed or sealed is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::clock::UnixMillis;
use sealflow_local_kms::blob::{self, Context};
use sealflow_local_kms::policy::{Call, Evidence, KeyPolicy};
use sealflow_local_kms::presigned::Presigned;
use sealflow_local_kms::sigv4::{SignedRequest, check_scope, check_signature, parse_authorization};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        let _ = blob::parse(bytes);
        return;
    };
    match kind % 3 {
        0 => {
            if let Ok(authorization) = parse_authorization(text) {
                assert!(authorization.signed_headers.is_sorted());
                let headers = [
                    ("authorization", text),
                    ("host", "h"),
                    ("x-amz-date", "20150830T123600Z"),
                ];
                let request = SignedRequest {
                    method: "POST",
                    headers: &headers,
                    body: b"",
                };
                let _ = check_scope(&request, &authorization, 1_440_938_160_000, &["eu-central-1"], "kms");
                assert!(check_signature(&request, &authorization, "a secret that nobody knows").is_err());
            }
            if let Ok(presigned) = Presigned::parse(text)
                && let Ok(authorization) = presigned.authorization()
            {
                let request = SignedRequest {
                    method: "GET",
                    headers: &[("host", "h")],
                    body: b"",
                };
                let scope: (&[&str], _) = (&["eu-central-1"], "sts");
                let _ = presigned.check_scope(&request, &authorization, 1_440_938_160_000, scope);
                let secret = "a secret that nobody knows";
                assert!(presigned.check_signature(&request, &authorization, secret).is_err());
            }
        }
        1 => {
            if let Ok(policy) = KeyPolicy::parse(text) {
                assert_eq!(policy.text(), text);
                let context = Context::from([("sealflow:acl".to_owned(), "pii".to_owned())]);
                let evidence = Evidence::of_registers([(0, [7; 48].as_slice()), (3, &[0; 48])]);
                for evidence in [Some(&evidence), None] {
                    let _ = policy.allows(&Call {
                        principal: "arn:aws:sts::111122223333:assumed-role/a/b",
                        action: "kms:Decrypt",
                        key_arn: "arn:aws:kms:eu-central-1:111122223333:key/a",
                        context: &context,
                        algorithm: Some("RSAES_OAEP_SHA_256"),
                        evidence,
                        now: UnixMillis(1_440_938_160_000),
                    });
                }
            }
        }
        _ => {
            if let Ok(parsed) = blob::parse(bytes) {
                assert!(parsed.key_arn.len() <= bytes.len());
            }
        }
    }
});
