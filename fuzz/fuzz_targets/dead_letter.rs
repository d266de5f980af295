//! Dead letters: the clear JSON, and the record sealed in it under a key or to a recipient.
#![no_main]

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::PrivateHalf;
use sealflow::pipeline::dead_letter::{Form, decode_record};
use sealflow::pipeline::{DeadLetter, Headers, LetterOpener, Position, Record, Timestamp, sealed_to};
use sealflow::secret::SecretBytes;
use tokio::runtime::{Builder, Runtime};

/// RFC 7638, section 3.1.
const JWK: &str = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}"#;

/// Instead of RSA, the content key stands in the letter as it is: so an input can be right in everything.
#[derive(Debug)]
struct Open(Vec<u8>);

impl PrivateHalf for Open {
    fn public(&self) -> &[u8] {
        &self.0
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        (!ciphertext.is_empty()).then(|| SecretBytes::new(ciphertext.to_vec()))
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

static OPENER: LazyLock<LetterOpener> = LazyLock::new(|| {
    let pem = RsaPublicJwk::from_json(JWK.as_bytes())
        .expect("a key")
        .to_pem()
        .expect("a key");
    let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(lines.concat()).expect("base64");
    let opener = LetterOpener::without_keys("payments").with_private_half(Arc::new(Open(der)));
    opener.expect("a key")
});

fuzz_target!(|bytes: &[u8]| {
    let position = Position {
        topic: "t".into(),
        partition: 0,
        offset: 0,
    };
    if let Ok(letter) = DeadLetter::from_json(bytes) {
        assert_eq!(DeadLetter::from_json(&letter.to_json()), Ok(letter.clone()));
        assert_eq!(DeadLetter::code_of(bytes).as_deref(), Ok(letter.code.as_str()));
        let message = Record {
            position: position.clone(),
            timestamp: Timestamp::None,
            key: None,
            value: None,
            headers: Headers::new(),
        };
        let opened = RUNTIME
            .block_on(OPENER.open(&letter, &message))
            .expect("no service is asked");
        if let Some(record) = opened {
            assert_eq!(letter.form(), Form::Recipient);
            assert!(sealed_to(&letter).is_some());
            let place = (
                &*record.position.topic,
                record.position.partition,
                record.position.offset,
            );
            assert_eq!(place, (letter.topic.as_str(), letter.partition, letter.offset));
        }
    }
    let _ = decode_record(bytes, position);
});
