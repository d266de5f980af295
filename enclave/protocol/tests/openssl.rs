//! What is sealed to a recipient, OpenSSL opens; what OpenSSL seals, opens here.
#![cfg(feature = "cms")]
#![allow(clippy::unwrap_used)] // tests

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use sealflow_enclave_protocol::cms;
use zeroize::Zeroizing;

/// Whether the program is there; else the test is named as skipped.
fn has_openssl(test: &str) -> bool {
    if Command::new("openssl")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return true;
    }
    let reason = format!("{test}: there is no `openssl` on the path");
    let _ = std::io::stderr().write_all(format!("skipped: {reason}\n").as_bytes());
    if let Some(ledger) = std::env::var_os("SEALFLOW_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(ledger)
            .unwrap();
        file.write_all(format!("{reason}\n").as_bytes()).unwrap();
    }
    false
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn openssl_opens_what_is_sealed() {
    if !has_openssl("CMS that OpenSSL opens") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for size in [KeySize::Rsa2048, KeySize::Rsa3072, KeySize::Rsa4096] {
        let key = PrivateDecryptingKey::generate(size).unwrap();
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
        std::fs::write(path.join("key.der"), private.as_ref()).unwrap();
        for length in [0, 32, 1000, 2400] {
            let plaintext = vec![0x5a; length];
            std::fs::write(path.join("sealed"), cms::seal(public.as_ref(), &plaintext).unwrap()).unwrap();
            openssl(
                path,
                &[
                    "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "sealed", "-keyform", "DER", "-inkey",
                    "key.der", "-out", "opened",
                ],
            );
            assert_eq!(
                std::fs::read(path.join("opened")).unwrap(),
                plaintext,
                "{size:?}, {length}"
            );
        }
    }
}

#[test]
fn what_openssl_seals_opens() {
    if !has_openssl("CMS that OpenSSL makes") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
    std::fs::write(path.join("key.der"), private.as_ref()).unwrap();
    // An identifier of 32 bytes, like that of KMS.
    let identifier = format!("subjectKeyIdentifier={}", "5a".repeat(32));
    openssl(
        path,
        &[
            "req",
            "-new",
            "-x509",
            "-subj",
            "/CN=recipient",
            "-days",
            "2",
            "-keyform",
            "DER",
            "-key",
            "key.der",
            "-addext",
            &identifier,
            "-out",
            "recipient.pem",
        ],
    );
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let unwrap = |wrapped: &[u8]| {
        let mut out = vec![0; key.min_output_size()];
        let text = key.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None).ok()?;
        Some(Zeroizing::new(text.to_vec()))
    };
    for length in [0, 32, 1000, 5000] {
        let plaintext = vec![0xa5; length];
        std::fs::write(path.join("plaintext"), &plaintext).unwrap();
        // Indefinite lengths and pieces, then definite ones and one piece.
        for form in ["-stream", "-noindef"] {
            let seal = |hash: &str, cipher: &str| {
                let hash = [format!("rsa_oaep_md:{hash}"), format!("rsa_mgf1_md:{hash}")];
                openssl(
                    path,
                    &[
                        "cms",
                        "-encrypt",
                        "-binary",
                        form,
                        "-in",
                        "plaintext",
                        "-outform",
                        "DER",
                        "-out",
                        "sealed",
                        cipher,
                        "-keyid",
                        "-recip",
                        "recipient.pem",
                        "-keyopt",
                        "rsa_padding_mode:oaep",
                        "-keyopt",
                        &hash[0],
                        "-keyopt",
                        &hash[1],
                    ],
                );
                std::fs::read(path.join("sealed")).unwrap()
            };
            let sealed = seal("sha256", "-aes-256-cbc");
            assert_eq!(sealed[1] == 0x80, form == "-stream");
            assert_eq!(*cms::open(&sealed, unwrap).unwrap(), plaintext, "{form}, {length}");
            // Neither another hash nor another cipher is what KMS sends.
            for (hash, cipher) in [
                ("sha1", "-aes-256-cbc"),
                ("sha256", "-aes-128-cbc"),
                ("sha256", "-des3"),
            ] {
                assert_eq!(
                    cms::open(&seal(hash, cipher), unwrap),
                    Err(cms::CmsError::DoesNotOpen),
                    "{hash}, {cipher}"
                );
            }
        }
    }
}
