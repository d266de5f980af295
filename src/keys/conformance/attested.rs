//! The contract of a key service towards programs that prove what they are, as AWS KMS has it: which operations take a
//! `Recipient`, and that with one no plaintext comes, but the same sealed to the key in the attestation document.
//!
//! It is about the service, not about a client of it: what asks is an [`AttestedKeyService`], which hands requests on as they are.

use async_trait::async_trait;

use super::ensure;
use crate::keys::EncryptionContext;
use crate::secret::SecretBytes;

/// A request that takes a `Recipient`.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// `GenerateDataKey` of 32 bytes.
    DataKey {
        /// Full ARN of the key.
        arn: &'a str,
        /// Its encryption context.
        context: &'a EncryptionContext,
    },
    /// `GenerateDataKeyPair` of `RSA_2048`.
    Pair {
        /// Full ARN of the key.
        arn: &'a str,
        /// Its encryption context.
        context: &'a EncryptionContext,
    },
    /// `Decrypt` under a symmetric key.
    Decrypt {
        /// Full ARN of the key.
        arn: &'a str,
        /// What is wrapped.
        wrapped: &'a [u8],
        /// Its encryption context.
        context: &'a EncryptionContext,
    },
    /// `Decrypt` under an RSA key, by `RSAES_OAEP_SHA_256`.
    DecryptRsa {
        /// Full ARN of the key.
        arn: &'a str,
        /// What is sealed to it.
        sealed: &'a [u8],
    },
    /// `GenerateRandom`.
    Random {
        /// How many bytes.
        length: usize,
    },
}

/// An answer, member by member. What is there and empty counts as not there.
#[derive(Debug, Default)]
pub struct Answer {
    /// `KeyId`.
    pub arn: Option<String>,
    /// `Plaintext`, or `PrivateKeyPlaintext` of a pair.
    pub plaintext: Option<SecretBytes>,
    /// `CiphertextBlob`, or `PrivateKeyCiphertextBlob` of a pair.
    pub wrapped: Option<Vec<u8>>,
    /// `PublicKey` of a pair: `SubjectPublicKeyInfo`, DER.
    pub public: Option<Vec<u8>>,
    /// `CiphertextForRecipient`.
    pub sealed: Option<Vec<u8>>,
}

/// A key service as it is asked on the wire. An error is the service's error code, `AccessDeniedException` for example.
#[async_trait]
pub trait AttestedKeyService: Send + Sync {
    /// Asks, with an attestation document as `Recipient` or without one.
    async fn ask(&self, ask: &Ask<'_>, document: Option<&[u8]>) -> Result<Answer, String>;

    /// The public half of an RSA key: `SubjectPublicKeyInfo`, DER.
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, String>;
}

/// A program in a TEE that has an RSA key, and gets documents about itself.
#[async_trait]
pub trait Attested: Send + Sync {
    /// A document of now that binds the key.
    async fn document(&self) -> Result<Vec<u8>, String>;

    /// Documents that nobody may believe, and what is wrong with them.
    async fn not_believed(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String>;

    /// Documents that are genuine, but of other measurements than the policies ask for, or without a key.
    async fn of_others(&self) -> Result<Vec<(&'static str, Vec<u8>)>, String>;

    /// Opens what a service sealed to the key.
    fn open(&self, sealed: &[u8]) -> Option<SecretBytes>;

    /// The public half (`SubjectPublicKeyInfo`, DER) of a private one (PKCS #8, DER).
    fn public_of(&self, private: &[u8]) -> Option<Vec<u8>>;

    /// Seals to a public key by RSAES-OAEP with SHA-256.
    fn seal_to(&self, public: &[u8], plaintext: &[u8]) -> Option<Vec<u8>>;
}

/// The keys of a run. This identity may do everything with them that is not denied.
#[derive(Clone, Copy, Debug)]
pub struct AttestedKeys<'a> {
    /// A symmetric key whose policy denies `Decrypt`, `GenerateDataKey` and `GenerateDataKeyPair` without the measurement.
    pub measured: &'a str,
    /// Another like it.
    pub other: &'a str,
    /// A symmetric key whose policy asks for no measurement.
    pub open: &'a str,
    /// A symmetric key that is disabled.
    pub disabled: &'a str,
    /// An RSA key of KMS whose policy is that of `measured`.
    pub rsa: &'a str,
}

/// Runs the contract.
///
/// # Errors
/// A sentence that says which part of the contract was broken.
pub async fn attested_key_service(
    service: &dyn AttestedKeyService,
    keys: &AttestedKeys<'_>,
    program: &dyn Attested,
) -> Result<(), String> {
    let all = [keys.measured, keys.other, keys.open, keys.disabled, keys.rsa];
    for (n, arn) in all.iter().enumerate() {
        ensure(!all[..n].contains(arn), "the suite needs five different keys")?;
    }
    let suite = Suite { service, keys, program };
    suite.plaintext_comes_sealed_and_never_beside_it().await?;
    suite.what_is_wrapped_opens_under_its_key_and_context_alone().await?;
    suite.private_halves_come_sealed().await?;
    suite.what_is_sealed_to_an_rsa_key_opens_for_the_recipient().await?;
    suite.without_the_measurement_there_is_nothing().await?;
    suite
        .without_a_recipient_plaintext_comes_where_nobody_asks_for_one()
        .await?;
    suite.documents_that_nobody_believes_get_nothing_of_any_key().await?;
    suite.a_disabled_key_gives_nothing().await
}

struct Suite<'a> {
    service: &'a dyn AttestedKeyService,
    keys: &'a AttestedKeys<'a>,
    program: &'a dyn Attested,
}

impl Suite<'_> {
    async fn plaintext_comes_sealed_and_never_beside_it(&self) -> Result<(), String> {
        let context = context();
        for arn in [self.keys.measured, self.keys.open] {
            let ask = Ask::DataKey { arn, context: &context };
            let (answer, first) = self.sealed(&ask).await?;
            ensure(
                first.len() == 32,
                "a data key for a recipient has not the length that was asked for",
            )?;
            ensure(
                answer.arn.as_deref() == Some(arn),
                "a data key's answer names another key",
            )?;
            let wrapped = answer
                .wrapped
                .ok_or("a data key for a recipient comes without its wrapped bytes")?;
            let decrypt = Ask::Decrypt {
                arn,
                wrapped: &wrapped,
                context: &context,
            };
            for _ in 0..2 {
                let (answer, opened) = self.sealed(&decrypt).await?;
                ensure(
                    opened == first,
                    "Decrypt gives a recipient other bytes than GenerateDataKey did",
                )?;
                ensure(answer.arn.as_deref() == Some(arn), "Decrypt's answer names another key")?;
            }
            let (_, second) = self.sealed(&ask).await?;
            ensure(first != second, "two data keys are equal")?;
        }
        for length in [1, 32, 1024] {
            let (answer, random) = self.sealed(&Ask::Random { length }).await?;
            ensure(
                random.len() == length,
                "GenerateRandom gives another length than was asked for",
            )?;
            ensure(answer.wrapped.is_none(), "random bytes come wrapped under a key")?;
        }
        Ok(())
    }

    async fn what_is_wrapped_opens_under_its_key_and_context_alone(&self) -> Result<(), String> {
        let context = context();
        let arn = self.keys.measured;
        let ask = Ask::DataKey { arn, context: &context };
        let (answer, _) = self.sealed(&ask).await?;
        let wrapped = answer.wrapped.ok_or("a data key without its wrapped bytes")?;
        for (what, arn, context) in [
            (
                "another dataset",
                arn,
                EncryptionContext::for_data_key("refunds", "default", "pii"),
            ),
            (
                "another ACL",
                arn,
                EncryptionContext::for_data_key("payments", "default", "ops"),
            ),
            ("no context", arn, EncryptionContext::default()),
            ("another key", self.keys.other, context.clone()),
        ] {
            let ask = Ask::Decrypt {
                arn,
                wrapped: &wrapped,
                context: &context,
            };
            self.nothing(
                &ask,
                &self.program.document().await?,
                &format!("a wrapped key under {what}"),
                &NOT_ITS,
            )
            .await?;
        }
        let mut edited = wrapped.clone();
        if let Some(last) = edited.last_mut() {
            *last ^= 1;
        }
        let ask = Ask::Decrypt {
            arn,
            wrapped: &edited,
            context: &context,
        };
        self.nothing(&ask, &self.program.document().await?, "an edited wrapped key", &NOT_ITS)
            .await
    }

    async fn private_halves_come_sealed(&self) -> Result<(), String> {
        let (arn, context) = (self.keys.measured, EncryptionContext::for_client_pair("payments"));
        let ask = Ask::Pair { arn, context: &context };
        let (answer, private) = self.sealed(&ask).await?;
        ensure(answer.arn.as_deref() == Some(arn), "a pair's answer names another key")?;
        let public = answer.public.ok_or("a pair comes without its public half")?;
        ensure(
            self.program.public_of(private.expose()) == Some(public),
            "the halves of a pair for a recipient do not belong together",
        )?;
        let wrapped = answer.wrapped.ok_or("a pair comes without its wrapped half")?;
        let decrypt = Ask::Decrypt {
            arn,
            wrapped: &wrapped,
            context: &context,
        };
        let (_, opened) = self.sealed(&decrypt).await?;
        ensure(
            opened == private,
            "Decrypt gives another private half than GenerateDataKeyPair did",
        )
    }

    async fn what_is_sealed_to_an_rsa_key_opens_for_the_recipient(&self) -> Result<(), String> {
        let arn = self.keys.rsa;
        let public = self.service.public_key(arn).await?;
        let sealed = self
            .program
            .seal_to(&public, b"session")
            .ok_or("a public key cannot be sealed to")?;
        let ask = Ask::DecryptRsa { arn, sealed: &sealed };
        let (answer, opened) = self.sealed(&ask).await?;
        ensure(
            opened == SecretBytes::new(b"session".to_vec()),
            "Decrypt under an RSA key gives other bytes",
        )?;
        ensure(answer.arn.as_deref() == Some(arn), "Decrypt's answer names another key")?;
        self.denied_without(&ask).await
    }

    async fn without_the_measurement_there_is_nothing(&self) -> Result<(), String> {
        let (arn, context) = (self.keys.measured, context());
        let made = Ask::DataKey { arn, context: &context };
        let (answer, _) = self.sealed(&made).await?;
        let wrapped = answer.wrapped.ok_or("a data key without its wrapped bytes")?;
        let decrypt = Ask::Decrypt {
            arn,
            wrapped: &wrapped,
            context: &context,
        };
        let pair = Ask::Pair { arn, context: &context };
        for ask in [made, decrypt, pair] {
            self.denied_without(&ask).await?;
            for (what, document) in self.program.of_others().await? {
                self.nothing(&ask, &document, what, &["AccessDeniedException", "ValidationException"])
                    .await?;
            }
        }
        Ok(())
    }

    async fn without_a_recipient_plaintext_comes_where_nobody_asks_for_one(&self) -> Result<(), String> {
        let context = context();
        let data_key = Ask::DataKey {
            arn: self.keys.open,
            context: &context,
        };
        for ask in [data_key, Ask::Random { length: 32 }] {
            let answer = self.service.ask(&ask, None).await;
            let answer = answer.map_err(|code| format!("{} without a recipient ends with {code}", name(&ask)))?;
            let is_clear = answer.plaintext.is_some_and(|plaintext| plaintext.len() == 32) && answer.sealed.is_none();
            ensure(
                is_clear,
                "without a recipient there is no plaintext, or something sealed to nobody",
            )?;
        }
        Ok(())
    }

    async fn documents_that_nobody_believes_get_nothing_of_any_key(&self) -> Result<(), String> {
        let context = context();
        for (what, document) in self.program.not_believed().await? {
            for arn in [self.keys.measured, self.keys.open] {
                let ask = Ask::DataKey { arn, context: &context };
                self.nothing(&ask, &document, what, &NOT_BELIEVED).await?;
                let ask = Ask::Pair { arn, context: &context };
                self.nothing(&ask, &document, what, &NOT_BELIEVED).await?;
            }
            self.nothing(&Ask::Random { length: 32 }, &document, what, &NOT_BELIEVED)
                .await?;
        }
        Ok(())
    }

    async fn a_disabled_key_gives_nothing(&self) -> Result<(), String> {
        let context = context();
        let ask = Ask::DataKey {
            arn: self.keys.disabled,
            context: &context,
        };
        let document = self.program.document().await?;
        self.nothing(&ask, &document, "a disabled key", &["DisabledException"])
            .await
    }

    /// The answer to a request with a document that fits, and what was sealed in it.
    async fn sealed(&self, ask: &Ask<'_>) -> Result<(Answer, SecretBytes), String> {
        let (what, document) = (name(ask), self.program.document().await?);
        let answer = self.service.ask(ask, Some(&document)).await;
        let answer = answer.map_err(|code| format!("{what} with a document that fits ends with {code}"))?;
        ensure(
            answer.plaintext.is_none(),
            &format!("{what} gives plaintext beside what is for the recipient"),
        )?;
        let sealed = answer
            .sealed
            .as_deref()
            .ok_or(format!("{what} gives nothing for the recipient"))?;
        // A sequence of indefinite length (X.690, section 8.1.3.6) up to its end-of-contents octets.
        let is_ber = sealed.starts_with(&[0x30, 0x80]) && sealed.ends_with(&[0, 0]);
        ensure(
            is_ber,
            &format!("{what} gives the recipient no BER of indefinite length"),
        )?;
        let opened = self
            .program
            .open(sealed)
            .ok_or(format!("{what}: the recipient cannot open what is for it"))?;
        ensure(
            !super::contains(sealed, opened.expose()) || opened.len() < 8,
            &format!("{what} seals nothing"),
        )?;
        Ok((answer, opened))
    }

    /// Without a document the key's policy denies it.
    async fn denied_without(&self, ask: &Ask<'_>) -> Result<(), String> {
        match self.service.ask(ask, None).await {
            Err(code) if code == "AccessDeniedException" => Ok(()),
            Err(code) => Err(format!("{} without a document ends with {code}", name(ask))),
            Ok(_) => Err(format!("{} without a document is done", name(ask))),
        }
    }

    async fn nothing(&self, ask: &Ask<'_>, document: &[u8], what: &str, codes: &[&str]) -> Result<(), String> {
        match self.service.ask(ask, Some(document)).await {
            Err(code) if codes.contains(&code.as_str()) => Ok(()),
            Err(code) => Err(format!("{}, {what}: ends with {code}", name(ask))),
            Ok(_) => Err(format!("{}, {what}: is done", name(ask))),
        }
    }
}

/// Codes for bytes that are not of this key and context. Where the policy sees the context, it may deny it first.
const NOT_ITS: [&str; 3] = [
    "InvalidCiphertextException",
    "IncorrectKeyException",
    "AccessDeniedException",
];
/// Codes for a document that is not believed: malformed, or without a measurement for a policy to see.
const NOT_BELIEVED: [&str; 2] = ["ValidationException", "AccessDeniedException"];

fn context() -> EncryptionContext {
    EncryptionContext::for_data_key("payments", "default", "pii")
}

fn name(ask: &Ask<'_>) -> &'static str {
    match ask {
        Ask::DataKey { .. } => "GenerateDataKey",
        Ask::Pair { .. } => "GenerateDataKeyPair",
        Ask::Decrypt { .. } => "Decrypt",
        Ask::DecryptRsa { .. } => "Decrypt under an RSA key",
        Ask::Random { .. } => "GenerateRandom",
    }
}
