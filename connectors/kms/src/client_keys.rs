//! Keys that clients seal to, in AWS KMS: `GetPublicKey`, `Decrypt` with RSA, data key pairs and MACs.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeyPairSpec, EncryptionAlgorithmSpec, KeyUsageType, MacAlgorithmSpec};
use sealflow::keys::{
    ClientKeyService, EncryptionContext, GeneratedPair, KeyService as _, KeyServiceError, PrivateHalf, RsaBits,
};
use sealflow::secret::SecretBytes;

use crate::answer::{MAX_PUBLIC_KEY, MAX_SEALED, bad_answer, check_key, pairs, secret, wrong_kind};
use crate::client::AwsKms;
use crate::error::Request;
use crate::held::HeldKey;

/// The most bytes that a MAC is asked of.
const MAX_MESSAGE: usize = 4096;

#[async_trait]
impl ClientKeyService for AwsKms {
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
            .ciphertext_blob(Blob::new(ciphertext));
        let answer = self.send((Request::Unwrap, arn), || request.clone().send()).await?;
        let plaintext = answer.plaintext.map(secret).ok_or_else(|| bad_answer("no plaintext"))?;
        check_key(answer.key_id.as_deref(), arn)?;
        if answer.encryption_algorithm != Some(EncryptionAlgorithmSpec::RsaesOaepSha256) {
            return Err(bad_answer("it decrypted by another algorithm than asked for"));
        }
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

    /// `GenerateDataKeyPairWithoutPlaintext`: the private half is not even in an answer. Since a pair costs KMS up to
    /// seconds, allow for it in the time-out of requests.
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
        let request = self
            .client(arn)?
            .generate_data_key_pair_without_plaintext()
            .key_id(arn)
            .key_pair_spec(spec.clone())
            .set_encryption_context(Some(pairs(context)));
        let answer = self.send((Request::Generate, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        if answer.key_pair_spec != Some(spec) {
            return Err(bad_answer("a pair of another size than asked for"));
        }
        let public = answer.public_key.map(Blob::into_inner).unwrap_or_default();
        let wrapped_private = answer
            .private_key_ciphertext_blob
            .map(Blob::into_inner)
            .unwrap_or_default();
        // The modulus alone is that long.
        if public.len() < bits.bits() / 8 || public.len() > MAX_PUBLIC_KEY {
            return Err(bad_answer("a public key of a length that none has"));
        }
        if wrapped_private.is_empty() {
            return Err(bad_answer("an empty wrapped key"));
        }
        Ok(GeneratedPair {
            public,
            wrapped_private,
            arn: arn.to_owned(),
        })
    }

    /// One `Decrypt`; what it unwraps is parsed on a thread that nobody waits for.
    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        let secret = self.unwrap(arn, wrapped, context).await?;
        let parsed = tokio::task::spawn_blocking(move || HeldKey::from_pkcs8(secret.expose())).await;
        let parsed = parsed.map_err(|_| KeyServiceError::Unavailable {
            reason: "a private key could not be read before the process ended".to_owned(),
        })?;
        let key = parsed.ok_or_else(|| bad_answer("what it unwrapped is no RSA private key of 2048 to 4096 bits"))?;
        Ok(Arc::new(key))
    }

    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        check_message(message)?;
        let request = self
            .client(arn)?
            .generate_mac()
            .key_id(arn)
            .mac_algorithm(MacAlgorithmSpec::HmacSha256)
            .message(Blob::new(message));
        let answer = self.send((Request::Mac, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        if answer.mac_algorithm != Some(MacAlgorithmSpec::HmacSha256) {
            return Err(bad_answer("a MAC by another algorithm than asked for"));
        }
        let mac = answer.mac.map(Blob::into_inner).unwrap_or_default();
        mac.try_into()
            .map_err(|_| bad_answer("a MAC of another length than 32 bytes"))
    }

    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError> {
        check_message(message)?;
        let request = self
            .client(arn)?
            .verify_mac()
            .key_id(arn)
            .mac_algorithm(MacAlgorithmSpec::HmacSha256)
            .message(Blob::new(message))
            .mac(Blob::new(mac.as_slice()));
        let answer = match self.send((Request::Mac, arn), || request.clone().send()).await {
            Ok(answer) => answer,
            // KMS says no by an error.
            Err(KeyServiceError::Refused { code, .. }) if code == "KMSInvalidMacException" => return Ok(false),
            Err(error) => return Err(error),
        };
        check_key(answer.key_id.as_deref(), arn)?;
        if answer.mac_algorithm != Some(MacAlgorithmSpec::HmacSha256) {
            return Err(bad_answer("a MAC by another algorithm than asked for"));
        }
        if answer.mac_valid {
            Ok(true)
        } else {
            Err(bad_answer("neither a valid MAC nor KMSInvalidMacException"))
        }
    }
}

fn check_message(message: &[u8]) -> Result<(), KeyServiceError> {
    if message.is_empty() || message.len() > MAX_MESSAGE {
        return Err(bad_answer("a message of a MAC has 1 to 4,096 bytes"));
    }
    Ok(())
}
