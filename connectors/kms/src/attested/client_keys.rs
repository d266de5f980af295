//! Keys that clients seal to: their private halves and what was sealed to them are released to the attested key alone.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeyPairSpec, EncryptionAlgorithmSpec, KeyUsageType};
use sealflow::keys::{
    ClientKeyService, EncryptionContext, GeneratedPair, KeyService as _, KeyServiceError, PrivateHalf, RsaBits,
};
use sealflow::secret::SecretBytes;

use super::{AttestedKms, check_context};
use crate::answer::{MAX_PUBLIC_KEY, MAX_SEALED, bad_answer, check_key, pairs, wrong_kind};
use crate::error::Request;
use crate::held::HeldKey;

#[async_trait]
impl ClientKeyService for AttestedKms {
    /// No secret, so nothing is released: that KMS says it is known by the TLS that ends here.
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyServiceError> {
        let request = self.client(arn)?.get_public_key().key_id(arn);
        let answer = self.send((Request::PublicKey, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        // A key for signatures: what a client sealed to it, nobody could open.
        let is_for_encryption = answer.key_usage == Some(KeyUsageType::EncryptDecrypt);
        let algorithms = answer.encryption_algorithms.unwrap_or_default();
        if !is_for_encryption || !algorithms.contains(&EncryptionAlgorithmSpec::RsaesOaepSha256) {
            return Err(wrong_kind(arn));
        }
        let public = answer.public_key.map(Blob::into_inner).unwrap_or_default();
        if public.is_empty() || public.len() > MAX_PUBLIC_KEY {
            return Err(bad_answer("a public key of a length that none has"));
        }
        Ok(public)
    }

    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError> {
        let request = self
            .client(arn)?
            .decrypt()
            .key_id(arn)
            .encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256)
            .ciphertext_blob(Blob::new(ciphertext))
            .recipient(self.recipient()?);
        let answer = self.send((Request::Unwrap, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        if answer.encryption_algorithm != Some(EncryptionAlgorithmSpec::RsaesOaepSha256) {
            return Err(bad_answer("it decrypted by another algorithm than asked for"));
        }
        let plaintext = self.released(answer.plaintext, answer.ciphertext_for_recipient)?;
        match plaintext.len() {
            // The service did right, it is the client that sealed nothing.
            0 => Err(KeyServiceError::Refused {
                arn: arn.to_owned(),
                code: "EmptyPlaintext".to_owned(),
            }),
            1..=MAX_SEALED => Ok(plaintext),
            _ => Err(bad_answer("more than fits into an RSA ciphertext")),
        }
    }

    /// `GenerateDataKeyPair`, whose private half is released here, compared with the public one, and dropped: that the two belong
    /// together need not be believed. A pair costs KMS up to seconds; allow for it in the time-out of requests.
    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError> {
        let spec = match bits {
            RsaBits::Rsa2048 => DataKeyPairSpec::Rsa2048,
            RsaBits::Rsa3072 => DataKeyPairSpec::Rsa3072,
            RsaBits::Rsa4096 => DataKeyPairSpec::Rsa4096,
        };
        let client = self.client(arn)?;
        check_context(arn, context)?;
        let request = client
            .generate_data_key_pair()
            .key_id(arn)
            .key_pair_spec(spec.clone())
            .set_encryption_context(Some(pairs(context)))
            .recipient(self.recipient()?);
        let answer = self.send((Request::Generate, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        let private = self.released(answer.private_key_plaintext, answer.ciphertext_for_recipient)?;
        if answer.key_pair_spec != Some(spec) {
            return Err(bad_answer("a pair of another size than asked for"));
        }
        let public = answer.public_key.map(Blob::into_inner).unwrap_or_default();
        let blob = answer.private_key_ciphertext_blob;
        let wrapped_private = blob.map(Blob::into_inner).unwrap_or_default();
        if wrapped_private.is_empty() {
            return Err(bad_answer("an empty wrapped key"));
        }
        let private = held(private).await?;
        if private.bits() != bits || private.public() != public {
            return Err(bad_answer("a public key that is not that of the private one"));
        }
        Ok(GeneratedPair {
            public,
            wrapped_private,
            arn: arn.to_owned(),
        })
    }

    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        let private = self.unwrap(arn, wrapped, context).await?;
        Ok(Arc::new(held(private).await?))
    }

    /// Not here: KMS takes no attestation for MACs, so that whoever has the credentials could ask for any.
    async fn mac(&self, arn: &str, _: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        Err(no_macs(arn))
    }

    /// Not here, as [`mac`](ClientKeyService::mac).
    async fn verify_mac(&self, arn: &str, _: &[u8], _: &[u8; 32]) -> Result<bool, KeyServiceError> {
        Err(no_macs(arn))
    }
}

/// Parsed on a thread that nobody waits for.
async fn held(secret: SecretBytes) -> Result<HeldKey, KeyServiceError> {
    let parsed = tokio::task::spawn_blocking(move || HeldKey::from_pkcs8(secret.expose())).await;
    let parsed = parsed.map_err(|_| KeyServiceError::Unavailable {
        reason: "a private key could not be read before the process ended".to_owned(),
    })?;
    parsed.ok_or_else(|| bad_answer("what it released is no RSA private key of 2048 to 4096 bits"))
}

fn no_macs(arn: &str) -> KeyServiceError {
    KeyServiceError::KeyUnusable {
        arn: arn.to_owned(),
        code: "MacsAreNotAttested".to_owned(),
    }
}
