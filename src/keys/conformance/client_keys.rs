//! The contract of [`ClientKeyService`]: what is sealed to a public key, pairs, MACs, and keys of the wrong kind.

use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _};
use rsa::traits::PublicKeyParts as _;
use sha2::Sha256;

use super::{contains, ensure, ensure_not_opened, ensure_refused};
use crate::keys::{ClientKeyService, EncryptionContext, GeneratedPair, KeyServiceError, RsaBits};
use crate::secret::SecretBytes;

/// Runs the contract with keys that this identity may use: two RSA keys of one size, an HMAC key, and a symmetric one.
/// [`key_service`](super::key_service) is run besides.
pub async fn client_key_service(
    service: &dyn ClientKeyService,
    rsa_arn: &str,
    other_rsa_arn: &str,
    hmac_arn: &str,
    symmetric_arn: &str,
) -> Result<(), String> {
    ensure(rsa_arn != other_rsa_arn, "the suite needs two different RSA keys")?;
    let public = public_keys_are_stable_and_of_a_size(service, rsa_arn).await?;
    let other = public_keys_are_stable_and_of_a_size(service, other_rsa_arn).await?;
    ensure(public != other, "two RSA keys have one public key")?;
    what_is_sealed_to_a_key_opens(service, rsa_arn, &public).await?;
    what_is_not_sealed_to_it_is_refused(service, rsa_arn, &public, &other).await?;
    private_halves_of_pairs_unwrap_under_their_context(service, symmetric_arn, rsa_arn).await?;
    private_halves_that_are_held_open_what_was_sealed_to_theirs(service, symmetric_arn).await?;
    macs_verify_under_their_key(service, hmac_arn).await?;
    keys_of_other_kinds_do_nothing(service, [rsa_arn, hmac_arn, symmetric_arn], &public).await
}

async fn public_keys_are_stable_and_of_a_size(
    service: &dyn ClientKeyService,
    arn: &str,
) -> Result<rsa::PublicKey, String> {
    let ask = || async {
        let der = service.public_key(arn).await;
        der.map_err(|e| format!("public_key failed: {e}"))
    };
    let (first, second) = (ask().await?, ask().await?);
    ensure(first == second, "a public key changes")?;
    let key = public_of(&first)?;
    ensure(
        RsaBits::ALL.iter().any(|bits| is_of(&key, *bits)),
        "a public key has not 2048, 3072 or 4096 bits",
    )?;
    Ok(key)
}

/// Canonical DER: nothing behind it, and the same when it is written again.
fn public_of(der: &[u8]) -> Result<rsa::PublicKey, String> {
    let key = rsa::PublicKey::from_public_key_der(der)
        .map_err(|e| format!("a public key is no SubjectPublicKeyInfo: {e}"))?;
    let again = key.to_public_key_der().map_err(|e| format!("a public key: {e}"))?;
    ensure(again.as_bytes() == der, "a public key is not canonical DER")?;
    Ok(key)
}

fn is_of(key: &rsa::PublicKey, bits: RsaBits) -> bool {
    key.n().bit_width() as usize == bits.bits()
}

fn seal(key: &rsa::PublicKey, plaintext: &[u8]) -> Result<Vec<u8>, String> {
    key.oaep_encrypt::<Sha256>(plaintext)
        .map_err(|e| format!("sealing failed: {e}"))
}

/// The most that fits: RFC 8017, section 7.1.1, step 1b.
fn most(key: &rsa::PublicKey) -> usize {
    key.size() - 2 * 32 - 2
}

async fn what_is_sealed_to_a_key_opens(
    service: &dyn ClientKeyService,
    arn: &str,
    public: &rsa::PublicKey,
) -> Result<(), String> {
    for length in [1, 16, 32, 64, most(public)] {
        let plaintext = vec![0xa5; length];
        let sealed = seal(public, &plaintext)?;
        for _ in 0..2 {
            let opened = service.decrypt_rsa(arn, &sealed).await;
            let opened = opened.map_err(|e| format!("decrypt_rsa of {length} bytes failed: {e}"))?;
            ensure(
                opened == SecretBytes::new(plaintext.clone()),
                "decrypt_rsa gives other bytes than were sealed",
            )?;
        }
    }
    Ok(())
}

async fn what_is_not_sealed_to_it_is_refused(
    service: &dyn ClientKeyService,
    arn: &str,
    public: &rsa::PublicKey,
    other: &rsa::PublicKey,
) -> Result<(), String> {
    for (what, bytes) in wrong_ciphertexts(public, other)? {
        ensure_refused(service.decrypt_rsa(arn, &bytes).await, &format!("a ciphertext {what}"))?;
    }
    Ok(())
}

/// What nobody sealed to `public` as it has to be.
fn wrong_ciphertexts(public: &rsa::PublicKey, other: &rsa::PublicKey) -> Result<Vec<(&'static str, Vec<u8>)>, String> {
    let sealed = seal(public, b"session")?;
    let flipped = |at: usize| {
        let mut edited = sealed.clone();
        if let Some(byte) = edited.get_mut(at) {
            *byte ^= 1;
        }
        edited
    };
    let last = sealed.len() - 1;
    let failed = |e: rsa::Error| format!("sealing failed: {e}");
    let labelled = rsa::oaep::EncryptingKey::<Sha256>::new_with_label(public.clone(), b"label".as_slice());
    Ok(vec![
        ("sealed to another key", seal(other, b"session")?),
        ("without its last byte", sealed.get(..last).unwrap_or_default().to_vec()),
        ("without its first byte", sealed.get(1..).unwrap_or_default().to_vec()),
        ("with one more byte", [sealed.as_slice(), &[0]].concat()),
        ("with a zero before it", [&[0], sealed.as_slice()].concat()),
        ("with its second byte changed", flipped(1)),
        ("with a byte in the middle changed", flipped(last / 2)),
        ("with its last byte changed", flipped(last)),
        ("sealed with a label", sealed_by(&labelled, b"session")?),
        (
            "sealed by OAEP with SHA-1",
            public.oaep_encrypt::<sha1::Sha1>(b"session").map_err(failed)?,
        ),
        (
            "sealed by OAEP with SHA-384",
            public.oaep_encrypt::<sha2::Sha384>(b"session").map_err(failed)?,
        ),
        (
            "sealed by PKCS #1 v1.5",
            public.pkcs1v15_encrypt(b"session").map_err(failed)?,
        ),
        ("nothing, sealed", seal(public, b"")?),
        ("zeros", vec![0; sealed.len()]),
        ("larger than the modulus", vec![0xff; sealed.len()]),
        ("the plaintext itself", b"session".to_vec()),
    ])
}

fn sealed_by(key: &rsa::oaep::EncryptingKey<Sha256>, plaintext: &[u8]) -> Result<Vec<u8>, String> {
    use rsa::traits::RandomizedEncryptor as _;
    key.encrypt_with_rng(&mut getrandom::SysRng, plaintext)
        .map_err(|e| format!("sealing failed: {e}"))
}

async fn private_halves_of_pairs_unwrap_under_their_context(
    service: &dyn ClientKeyService,
    arn: &str,
    rsa_arn: &str,
) -> Result<(), String> {
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let mut seen: Vec<GeneratedPair> = Vec::new();
    for bits in RsaBits::ALL {
        let pair = service.generate_pair(arn, bits, &context).await;
        let pair = pair.map_err(|e| format!("generate_pair({}) failed: {e}", bits.bits()))?;
        ensure(
            pair.arn == arn,
            "generate_pair names another key than the one asked for",
        )?;
        let public = public_of(&pair.public)?;
        ensure(is_of(&public, bits), "a pair has not the size that was asked for")?;
        let opened = service.unwrap(arn, &pair.wrapped_private, &context).await;
        let opened = opened.map_err(|e| format!("unwrap of a private key failed: {e}"))?;
        ensure(
            !contains(&pair.wrapped_private, opened.expose()),
            "a wrapped private key holds it in clear",
        )?;
        let private = rsa::PrivateKey::from_pkcs8_der(opened.expose())
            .map_err(|e| format!("a private key is no PKCS #8: {e}"))?;
        ensure(
            private.to_public_key() == public,
            "the halves of a pair do not belong together",
        )?;
        seen.push(pair);
    }
    for (n, pair) in seen.iter().enumerate() {
        let again = seen.iter().skip(n + 1).any(|other| other.public == pair.public);
        ensure(!again, "two pairs are one")?;
    }
    let others = [
        (
            "another dataset",
            EncryptionContext::for_data_key("refunds", "default", "pii"),
        ),
        (
            "another ACL",
            EncryptionContext::for_data_key("payments", "default", "ops"),
        ),
        ("no context", EncryptionContext::default()),
    ];
    let Some(pair) = seen.first() else { return Ok(()) };
    for (what, other) in &others {
        let answer = service.unwrap(arn, &pair.wrapped_private, other).await;
        ensure_refused(answer, &format!("a private key under {what}"))?;
    }
    ensure_of_no_use(
        service.unwrap(rsa_arn, &pair.wrapped_private, &context).await,
        "a private key, unwrapped under an RSA key,",
    )
}

async fn private_halves_that_are_held_open_what_was_sealed_to_theirs(
    service: &dyn ClientKeyService,
    arn: &str,
) -> Result<(), String> {
    let context = EncryptionContext::for_client_pair("payments");
    let pair = |bits| service.generate_pair(arn, bits, &context);
    let failed = |e| format!("generate_pair failed: {e}");
    let other = pair(RsaBits::Rsa2048).await.map_err(failed)?;
    let other = public_of(&other.public)?;
    for bits in RsaBits::ALL {
        let pair = pair(bits).await.map_err(failed)?;
        let half = service.private_half(arn, &pair.wrapped_private, &context).await;
        let half = half.map_err(|e| format!("private_half({}) failed: {e}", bits.bits()))?;
        ensure(half.public() == pair.public, "a private half says another public one")?;
        let public = public_of(&pair.public)?;
        for length in [1, 32, most(&public)] {
            let opened = half.decrypt(&seal(&public, &vec![0x5a; length])?);
            ensure(
                opened == Some(SecretBytes::new(vec![0x5a; length])),
                "a private half does not open what was sealed to its public one",
            )?;
        }
        for (what, bytes) in wrong_ciphertexts(&public, &other)? {
            ensure(
                half.decrypt(&bytes).is_none(),
                &format!("a private half opens a ciphertext {what}"),
            )?;
        }
        let elsewhere = EncryptionContext::for_client_pair("refunds");
        let answer = service.private_half(arn, &pair.wrapped_private, &elsewhere).await;
        ensure_refused(
            answer.map(|_| SecretBytes::new(Vec::new())),
            "a private half of another dataset",
        )?;
    }
    // A data key is no private half.
    let key = service
        .generate(arn, 32, &context)
        .await
        .map_err(|e| format!("generate failed: {e}"))?;
    match service.private_half(arn, &key.wrapped, &context).await {
        Err(KeyServiceError::BadAnswer { .. }) => Ok(()),
        Ok(_) => Err("a data key becomes a private half".to_owned()),
        Err(other) => Err(format!("a data key as a private half ends with: {other}")),
    }
}

async fn macs_verify_under_their_key(service: &dyn ClientKeyService, arn: &str) -> Result<(), String> {
    let longest = vec![7; 4096];
    for message in [b"m".as_slice(), b"message", &longest] {
        let mac = service
            .mac(arn, message)
            .await
            .map_err(|e| format!("mac failed: {e}"))?;
        let again = service
            .mac(arn, message)
            .await
            .map_err(|e| format!("mac failed: {e}"))?;
        ensure(mac == again, "a MAC changes")?;
        ensure(verify(service, arn, message, &mac).await?, "a MAC does not verify")?;
        for at in [0, 15, 31] {
            let mut edited = mac;
            edited[at] ^= 1;
            ensure(!verify(service, arn, message, &edited).await?, "an edited MAC verifies")?;
        }
        ensure(
            !verify(service, arn, message, &[0; 32]).await?,
            "a MAC of zeros verifies",
        )?;
        ensure(
            !verify(service, arn, b"other", &mac).await?,
            "the MAC of another message verifies",
        )?;
    }
    Ok(())
}

async fn verify(service: &dyn ClientKeyService, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, String> {
    let answer = service.verify_mac(arn, message, mac).await;
    answer.map_err(|e| format!("verify_mac failed: {e}"))
}

async fn keys_of_other_kinds_do_nothing(
    service: &dyn ClientKeyService,
    [rsa_arn, hmac_arn, symmetric_arn]: [&str; 3],
    public: &rsa::PublicKey,
) -> Result<(), String> {
    let context = EncryptionContext::for_data_key("payments", "default", "pii");
    let sealed = seal(public, b"session")?;
    let key = service.generate(symmetric_arn, 32, &context).await;
    let key = key.map_err(|e| format!("generate failed: {e}"))?;
    for arn in [hmac_arn, symmetric_arn] {
        ensure_unusable(service.public_key(arn).await, "public_key", arn)?;
        ensure_of_no_use(
            service.decrypt_rsa(arn, &sealed).await,
            "an RSA ciphertext under another kind of key",
        )?;
    }
    for arn in [rsa_arn, hmac_arn] {
        ensure_unusable(service.generate(arn, 32, &context).await, "generate", arn)?;
        let pair = service.generate_pair(arn, RsaBits::Rsa2048, &context).await;
        ensure_unusable(pair, "generate_pair", arn)?;
        ensure_of_no_use(
            service.unwrap(arn, &key.wrapped, &context).await,
            "a wrapped key under another kind of key",
        )?;
    }
    for arn in [rsa_arn, symmetric_arn] {
        ensure_unusable(service.mac(arn, b"message").await, "mac", arn)?;
        let verified = service.verify_mac(arn, b"message", &[0; 32]).await;
        ensure_unusable(verified, "verify_mac", arn)?;
    }
    Ok(())
}

fn ensure_unusable<T>(answer: Result<T, KeyServiceError>, call: &str, arn: &str) -> Result<(), String> {
    match answer {
        Err(KeyServiceError::KeyUnusable { arn: named, .. }) => {
            ensure(named == arn, "an error names another key than the one asked for")
        }
        Ok(_) => Err(format!("{call} works with a key of another kind")),
        Err(other) => Err(format!("{call} with a key of another kind ends with: {other}")),
    }
}

/// AWS KMS does not always say whether it was the key or what it should have opened.
fn ensure_of_no_use(answer: Result<SecretBytes, KeyServiceError>, what: &str) -> Result<(), String> {
    match answer {
        Err(KeyServiceError::KeyUnusable { .. }) => Ok(()),
        answer => ensure_not_opened(answer, what),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keys::conformance::key_service;
    use crate::keys::testing::MemoryKms;

    const RSA: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-00000000000a";
    const OTHER_RSA: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-00000000000b";
    const HMAC: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-00000000000c";
    const SYMMETRIC: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-00000000000d";

    fn kms() -> MemoryKms {
        let kms = MemoryKms::new();
        kms.create_rsa_key(RSA, RsaBits::Rsa2048).unwrap();
        kms.create_hmac_key(HMAC).unwrap();
        kms
    }

    #[tokio::test]
    async fn the_memory_kms_keeps_the_contract_of_client_keys() {
        let kms = kms();
        kms.create_rsa_key(OTHER_RSA, RsaBits::Rsa2048).unwrap();
        let kept = client_key_service(&kms, RSA, OTHER_RSA, HMAC, SYMMETRIC).await;
        assert_eq!(kept, Ok(()));
        assert_eq!(key_service(&kms, SYMMETRIC, "another symmetric key").await, Ok(()));
    }

    #[tokio::test]
    async fn the_memory_kms_counts_and_fails_calls_about_client_keys() {
        let kms = kms();
        let public = public_of(&kms.public_key(RSA).await.unwrap()).unwrap();
        let sealed = seal(&public, b"session").unwrap();
        let failure = KeyServiceError::Throttled { retry_after: None };
        kms.fail_with(Some(failure.clone()));
        assert_eq!(kms.decrypt_rsa(RSA, &sealed).await.err(), Some(failure.clone()));
        assert_eq!(kms.mac(HMAC, b"m").await.err(), Some(failure));
        kms.fail_with(None);
        kms.set_delay(Duration::from_millis(1));
        assert!(kms.decrypt_rsa(RSA, &sealed).await.is_ok());
        kms.set_unusable(RSA, true);
        ensure_unusable(kms.decrypt_rsa(RSA, &sealed).await, "decrypt_rsa", RSA).unwrap();
        ensure_unusable(kms.public_key(RSA).await, "public_key", RSA).unwrap();
        let mac = kms.mac(HMAC, b"m").await.unwrap();
        assert_eq!(kms.verify_mac(HMAC, b"m", &mac).await, Ok(true));
        let calls = (kms.public_key_calls(), kms.decrypt_rsa_calls(), kms.mac_calls());
        assert_eq!(calls, (2, 3, 2));
        assert_eq!((kms.verify_mac_calls(), kms.generate_pair_calls()), (1, 0));
    }
}
