//! A column that a client seals before it leaves: opened and sealed again by the pipeline, and answered to the client's own key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::flow::hybrid::AnswerKey;
use sealflow::keys::OpeningKeys;
use sealflow::pipeline::{
    Clients, Format, Header, KeysPlacement, Outcome, Position, Reader, Record, Route, SealTransform, Timestamp,
    apply_all,
};
use sealflow::policy::{FixedPolicies, OwnerKey};
use sealflow_client::{Answers, PrivateKey, RsaBits, RsaPublicJwk, Session};
use serde_json::Value;

use super::bench::{Bench, Who, signed_policy};
use super::stream::wrong;
use crate::clock::MachineClock;
use crate::failure::Result;

const RECORDS: u32 = 1_000;
const AGE: Duration = Duration::from_secs(300);

/// What it showed.
pub(super) struct Shown {
    pub(super) records: u32,
    /// A record as the client sends it, shortened.
    pub(super) sent: String,
    pub(super) stored: String,
    /// How often KMS was asked to open something for all of them.
    pub(super) decrypts: u64,
    /// The answer, shortened.
    pub(super) answer: String,
    /// What the client reads in it.
    pub(super) opened: String,
    /// What becomes of a value that was sealed for another column.
    pub(super) moved: String,
}

/// Seals as a client, passes the pipeline, reads as the client.
pub(super) async fn run(bench: &Bench) -> Result<Shown> {
    let failed = |what: &str| wrong(what);
    let kms = bench.service(Who::Pipeline).await?;
    let rsa = bench.client_key().await?;
    let yaml = format!(
        "dataset: forms\nversion: 1\nkeys: {{ default: {{ arn: \"{}\" }} }}\nclient: {{ keys: {{ web: {{ arn: \"{rsa}\" }} }} }}\n\
         acls: {{ support: {{ allow: [\"{}\"] }} }}\ncolumns:\n  - {{ path: card, key: default, acl: support, flow: hybrid }}\n\
         dead_letters: {{ key: default, acl: support }}\n",
        bench.key_arn,
        Who::Auditor.arn()
    );
    let owner = OwnerKey::generate().map_err(|error| wrong(&error.to_string()))?;
    let (policy, _) = signed_policy(&yaml, &owner)?;
    let policy = Arc::new(policy);

    // The client: the backend's public key, a session, values.
    let der = kms.public_key(&rsa).await?;
    let to = RsaPublicJwk::from_spki_der(&der).map_err(|error| wrong(&error.to_string()))?;
    let mut session = Session::begin(&to, "forms").map_err(|error| wrong(&error.to_string()))?;
    let mut records = Vec::new();
    for n in 0..RECORDS {
        let card = format!("\"4111-{n:04}\"");
        records.push(record(n, &mut session, ["card", "card"], &card)?);
    }
    let sent = text(&records[0]);

    // The pipeline.
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    let sealer = bench.sealer(kms.clone());
    let seal = SealTransform::new(Arc::clone(&policy), Format::Json, KeysPlacement::Header, sealer);
    let clients = Clients::new(kms.clone(), Arc::clone(&clock), AGE, 1_000);
    let seal = seal.map_err(|error| wrong(&error.to_string()))?.with_clients(clients);
    let before = bench.decrypts();
    let outcomes = apply_all(&seal, &records).await?;
    let decrypts = bench.decrypts() - before;
    if outcomes.len() != RECORDS as usize || outcomes.iter().any(|outcome| outcome.route != Route::Target) {
        return Err(failed("a value of the client did not pass"));
    }
    let stored: Vec<Record> = outcomes.into_iter().map(|outcome| outcome.record).collect();
    if stored.iter().any(|record| text(record).contains("4111-")) {
        return Err(failed("a plaintext is in a stored record"));
    }
    let moved = apply_all(&seal, &[record(0, &mut session, ["card", "note"], "\"4111-0000\"")?]).await?;
    let moved = dead_letter(&moved).ok_or_else(|| failed("a value moved to another column was not refused"))?;

    // The reader, whose answers only their own key opens.
    let reader_key = PrivateKey::generate(RsaBits::Rsa2048).map_err(|error| wrong(&error.to_string()))?;
    let public = reader_key.public().map_err(|error| wrong(&error.to_string()))?;
    let answer_key = AnswerKey::new(&public, "forms").map_err(|error| wrong(&error.to_string()))?;
    let policies = Arc::new(FixedPolicies::new(vec![policy]));
    let service = bench.service(Who::Auditor).await?;
    let opening = OpeningKeys::new(
        service.clone(),
        bench.catalogue(),
        policies.clone(),
        clock.clone(),
        AGE,
        100,
    );
    let domains = bench.sealer(service).domains;
    let reader = Reader::new("forms", Format::Json, policies, opening, domains);
    let who = Identity::from_arn(&Who::Auditor.arn()).map_err(|error| wrong(&error.to_string()))?;
    let now: UnixMillis = clock.now();
    let reading = reader
        .read_to(stored[..1].to_vec(), &who, None, now, Some(&answer_key))
        .await;
    let reading = reading.map_err(|error| wrong(&error.to_string()))?;
    let answered = reading.records.into_iter().flatten().next();
    let answered = answered.ok_or_else(|| failed("nothing was answered"))?;
    let answer = text(&answered);
    let opened = Answers::new(&reader_key, "forms").document(answer.as_bytes(), &[]);
    let (opened, count) = opened.map_err(|error| wrong(&error.to_string()))?;
    let opened = String::from_utf8_lossy(opened.expose()).into_owned();
    if count != 1 || opened != r#"{"id":0,"card":"4111-0000"}"# {
        return Err(failed("the answer does not open with the reader's key"));
    }
    Ok(Shown {
        records: RECORDS,
        sent: shortened(&sent),
        stored: text(&stored[0]),
        decrypts,
        answer: shortened(&answer),
        opened,
        moved,
    })
}

/// A record whose `field` holds a value that was sealed as one of `label`.
pub(super) fn record(n: u32, session: &mut Session, [field, label]: [&str; 2], value: &str) -> Result<Record> {
    let sealed = session.seal(label, value.as_bytes());
    let sealed = sealed.map_err(|error| wrong(&error.to_string()))?;
    Ok(Record {
        position: Position {
            topic: Arc::from("forms"),
            partition: 0,
            offset: i64::from(n),
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::from(format!(r#"{{"id":{n},"{field}":"{sealed}"}}"#))),
        headers: [Header {
            name: "sealflow-session".into(),
            value: Some(Bytes::copy_from_slice(session.token().as_bytes())),
        }]
        .into(),
    })
}

fn dead_letter(outcomes: &[Outcome]) -> Option<String> {
    let outcome = outcomes.first().filter(|outcome| outcome.route == Route::DeadLetter)?;
    let letter: Value = serde_json::from_slice(outcome.record.value.as_deref()?).ok()?;
    Some(letter["code"].as_str()?.to_owned())
}

pub(super) fn text(record: &Record) -> String {
    String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
}

/// JWEs are long: their beginning and their end.
pub(super) fn shortened(record: &str) -> String {
    let parts = record.split('"').map(|part| match part.strip_prefix("eyJ") {
        Some(_) if part.len() > 48 => format!("{}…{}", &part[..24], &part[part.len() - 12..]),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("\"")
}
