//! A column that clients seal against the same column sealed by the direct flow: what opening costs the host with sessions that
//! it knows, with sessions that it has to have unwrapped, and in bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use bytes::Bytes;
use sealflow::keys::testing::MemoryKms;
use sealflow::keys::{
    ClientKeyService, EncryptionContext, GeneratedKey, GeneratedPair, KeyDescription, KeyService, KeyServiceError,
    PrivateHalf, RsaBits,
};
use sealflow::pipeline::{Header, Record};
use sealflow::policy::VerifiedPolicy;
use sealflow::secret::SecretBytes;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::{Engine, samples, to_records};
use sealflow_benchmarks::measure::{Contender, interleaved};
use sealflow_benchmarks::report::{Comparison, exactly, figure};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_client::{RsaPublicJwk, Session};

const SECTION: &str = "hybrid";
const PAIRS: usize = 31;
const RECORDS: u64 = 8_192;
const BATCH: usize = 1_024;
/// Sessions of the warm case, whose records are mixed.
const SESSIONS: usize = 64;
const PATH: &str = "user.email";
const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222";

pub(crate) fn run() -> Result<(), Error> {
    let kms = Arc::new(Answered::new()?);
    let public = RsaPublicJwk::from_spki_der(&kms.public)?;
    let records = samples(scaled(RECORDS));
    let count = records.len();
    let clear_bytes: usize = records.iter().map(Record::payload_bytes).sum();

    let warm = sealed(&records, &public, count.div_ceil(count.div_ceil(SESSIONS)))?;
    let cold = sealed(&records, &public, 1)?;
    let (direct, hybrid) = (
        Engine::on(kms.clone(), policy("")?)?,
        Engine::on(kms.clone(), policy(HYBRID)?)?,
    );
    let client_bytes: usize = warm.iter().map(Record::payload_bytes).sum();
    let per_value = |bytes: usize| exactly((bytes as f64 - clear_bytes as f64) / count as f64);
    figure(
        SECTION,
        "bytes that sealing adds to a record",
        "by the client, with its session",
        "bytes",
        per_value(client_bytes),
    )?;
    let stored = to_records(hybrid.seal_all(&warm)?);
    let stored: usize = stored.iter().map(Record::payload_bytes).sum();
    figure(
        SECTION,
        "bytes that sealing adds to a record",
        "as it is stored",
        "bytes",
        per_value(stored),
    )?;

    let sides = vec![
        Contender::here("direct", || pass(&direct, &records)),
        Contender::here("hybrid, sessions known", || pass(&hybrid, &warm)),
        // An engine of its own each time knows no session.
        Contender::here("hybrid, a session for each record, key service for nothing", || {
            let fresh = policy(HYBRID).and_then(|policy| Engine::on(kms.clone(), policy));
            assert!(fresh.is_ok());
            if let Ok(fresh) = fresh {
                pass(&fresh, &cold);
            }
        }),
    ];
    let samples = interleaved(pairs(PAIRS), 2, sides)?;
    Comparison {
        section: SECTION,
        what: "seal one column",
        unit: "ns per record",
        factor: 1e9 / count as f64,
        baseline: "direct",
    }
    .write(&samples)?;
    refusals(&hybrid, &warm, &public)?;
    private_operations()
}

/// What each kind of failure takes: whether the time tells which it was (docs/threat-model.md, "What clients seal").
fn refusals(engine: &Engine, good: &[Record], to: &RsaPublicJwk) -> Result<(), Error> {
    let mut stranger = Session::begin(to, "payments")?;
    let mut elsewhere = Session::begin(to, "refunds")?;
    let (of_stranger, moved) = (stranger.seal(PATH, b"\"x\"")?, elsewhere.seal(PATH, b"\"x\"")?);
    let edited = |edit: &dyn Fn(&str) -> String| -> Result<Vec<Record>, Error> {
        let mut all = Vec::with_capacity(good.len());
        for record in good {
            let mut value: serde_json::Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
            let jwe = edit(value["user"]["email"].as_str().unwrap_or_default());
            value["user"]["email"] = jwe.into();
            let mut record = record.clone();
            record.value = Some(value.to_string().into());
            all.push(record);
        }
        Ok(all)
    };
    let kinds = [
        (
            "wrong tag",
            edited(&|jwe| format!("{}AAAAAAAAAAAAAAAAAAAAAA", &jwe[..jwe.len() - 22]))?,
        ),
        (
            "session that the record does not carry",
            edited(&|_| of_stranger.clone())?,
        ),
        ("sealed for another dataset", edited(&|_| moved.clone())?),
        ("truncated", edited(&|jwe| jwe[..jwe.len() - 4].to_owned())?),
        ("header that is no JSON", edited(&|jwe| format!("eyJ{jwe}"))?),
        ("in clear", edited(&|_| "ann@example.com".to_owned())?),
    ];
    let sides = kinds.iter().map(|(name, records)| {
        Contender::here(name, move || {
            for batch in records.chunks(BATCH) {
                assert!(engine.refuse_all(batch).is_ok());
            }
        })
    });
    let samples = interleaved(pairs(PAIRS), 2, sides.collect())?;
    Comparison {
        section: SECTION,
        what: "refuse a record, by what is wrong with its value",
        unit: "ns per record",
        factor: 1e9 / good.len() as f64,
        baseline: "wrong tag",
    }
    .write(&samples)
}

/// What bounds cold sessions besides: the private-key operation, wherever it is done.
fn private_operations() -> Result<(), Error> {
    const EACH: usize = 20;
    let mut keys = Vec::new();
    for (name, size) in [
        ("RSA-2048", KeySize::Rsa2048),
        ("RSA-3072", KeySize::Rsa3072),
        ("RSA-4096", KeySize::Rsa4096),
    ] {
        let key = PrivateDecryptingKey::generate(size).map_err(|_| "no key")?;
        let der: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
            aws_lc_rs::encoding::AsDer::as_der(&key.public_key()).map_err(|_| "no public key")?;
        let public = RsaPublicJwk::from_spki_der(der.as_ref())?;
        let wrapped = public.wrap(&[7; 32])?;
        keys.push((name, OaepPrivateDecryptingKey::new(key).map_err(|_| "no key")?, wrapped));
    }
    let sides = keys.iter().map(|(name, key, wrapped)| {
        Contender::here(name, move || {
            let mut out = vec![0; key.min_output_size()];
            for _ in 0..EACH {
                assert!(key.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None).is_ok());
            }
        })
    });
    let samples = interleaved(pairs(PAIRS), 1, sides.collect())?;
    Comparison {
        section: SECTION,
        what: "unwrap a session's key (AWS-LC)",
        unit: "µs",
        factor: 1e6 / EACH as f64,
        baseline: "RSA-2048",
    }
    .write(&samples)
}

fn pass(engine: &Engine, records: &[Record]) {
    for batch in records.chunks(BATCH) {
        assert!(engine.seal_all(batch).is_ok());
    }
}

const HYBRID: &str = ", flow: hybrid";

fn policy(flow: &str) -> Result<Arc<VerifiedPolicy>, Error> {
    let yaml = format!(
        "dataset: payments\nversion: 1\nkeys: {{ pii: {{ arn: \"{ARN}\" }} }}\nclient: {{ keys: {{ web: {{ arn: \"{RSA_ARN}\" }} }} }}\n\
         acls: {{ pii: {{}} }}\ndead_letters: {{ key: pii, acl: pii }}\ncolumns: [{{ path: {PATH}, key: pii, acl: pii{flow} }}]\n"
    );
    let policy = VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).map_err(|error| format!("{error:?}"))?;
    Ok(Arc::new(policy))
}

/// The records with their column sealed by clients: a session for each `of_session` of them, the sessions' records mixed.
fn sealed(records: &[Record], to: &RsaPublicJwk, of_session: usize) -> Result<Vec<Record>, Error> {
    sealed_in(records, to, records.len().div_ceil(of_session))
}

/// A pipeline of this flow, and records with a column that clients of these many sessions sealed, which are mixed.
pub(crate) fn engine_and_records(records: &[Record], sessions: usize) -> Result<(Engine, Vec<Record>), Error> {
    let kms = Arc::new(Answered::new()?);
    let sealed = sealed_in(records, &RsaPublicJwk::from_spki_der(&kms.public)?, sessions)?;
    Ok((Engine::on(kms, policy(HYBRID)?)?, sealed))
}

/// The records with their column sealed by clients of these many sessions, which are mixed.
pub(crate) fn sealed_in(records: &[Record], to: &RsaPublicJwk, sessions: usize) -> Result<Vec<Record>, Error> {
    let mut sessions: Vec<Session> = (0..sessions)
        .map(|_| Session::begin(to, "payments"))
        .collect::<Result<_, _>>()?;
    let count = sessions.len();
    let mut all = Vec::with_capacity(records.len());
    for (n, record) in records.iter().enumerate() {
        let session = &mut sessions[n % count];
        let mut value: serde_json::Value = serde_json::from_slice(record.value.as_deref().unwrap_or_default())?;
        let email = &mut value["user"]["email"];
        let jwe = session.seal(PATH, email.to_string().as_bytes())?;
        *email = jwe.into();
        let mut record = record.clone();
        record.value = Some(value.to_string().into());
        record.headers.push(Header {
            name: "sealflow-session".into(),
            value: Some(Bytes::copy_from_slice(session.token().as_bytes())),
        });
        all.push(record);
    }
    Ok(all)
}

/// A key service that remembers its RSA answers, so that after the rounds that are not counted the host is measured, and not the
/// key service.
#[derive(Debug)]
struct Answered {
    inner: MemoryKms,
    public: Vec<u8>,
    known: Mutex<HashMap<Vec<u8>, SecretBytes>>,
}

impl Answered {
    fn new() -> Result<Self, Error> {
        let inner = MemoryKms::new();
        inner.create_rsa_key(RSA_ARN, RsaBits::Rsa2048)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self {
            public: runtime.block_on(inner.public_key(RSA_ARN))?,
            inner,
            known: Mutex::default(),
        })
    }

    fn answered(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = known.get(ciphertext)?;
        Some(SecretBytes::new(secret.expose().to_vec()))
    }
}

#[async_trait]
impl KeyService for Answered {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.inner.generate(arn, len, context).await
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.inner.unwrap(arn, wrapped, context).await
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.inner.describe(arn).await
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        self.inner.identity().await
    }
}

#[async_trait]
impl ClientKeyService for Answered {
    async fn public_key(&self, _: &str) -> Result<Vec<u8>, KeyServiceError> {
        Ok(self.public.clone())
    }

    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError> {
        if let Some(secret) = self.answered(ciphertext) {
            return Ok(secret);
        }
        let secret = self.inner.decrypt_rsa(arn, ciphertext).await?;
        let copy = SecretBytes::new(secret.expose().to_vec());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(ciphertext.to_vec(), copy);
        Ok(secret)
    }

    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError> {
        self.inner.generate_pair(arn, bits, context).await
    }

    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        self.inner.private_half(arn, wrapped, context).await
    }

    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        self.inner.mac(arn, message).await
    }

    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError> {
        self.inner.verify_mac(arn, message, mac).await
    }
}
