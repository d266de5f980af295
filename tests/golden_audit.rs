//! The golden audit log, which none of our code wrote: ours writes the same bytes, and finds it whole (G10).

#![allow(clippy::unwrap_used, clippy::panic)] // a broken golden file is a failed test

use std::sync::Arc;
use std::time::Duration;

use sealflow::audit::{Body, Event, InstanceId, Journal, Line, Lines, Place, Proof, Sealing, Verdict, Verifier};
use sealflow::clock::UnixMillis;
use sealflow::jose::PrivateJwk;

const LOG: &str = include_str!("golden/audit-log.jsonl");
const CHECKPOINTS: &str = include_str!("golden/audit-checkpoints.txt");
/// RFC 8037, appendix A.1.
const KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const START: UnixMillis = UnixMillis(1_767_225_600_000);

fn key() -> PrivateJwk {
    PrivateJwk::from_json(KEY.as_bytes()).unwrap()
}

#[test]
fn the_journal_writes_the_golden_audit_log_byte_for_byte() {
    let sealing = Sealing {
        key: Arc::new(key()),
        every: 2,
        span: Duration::from_secs(60),
    };
    let mut written = Lines::default();
    let mut add = |made: Lines| {
        written.lines.extend(made.lines);
        written.checkpoints.extend(made.checkpoints);
        written.lines.last().unwrap().clone()
    };
    let at = |millis| UnixMillis(START.0 + millis);
    let instance = InstanceId::from_bytes(std::array::from_fn(|n| u8::try_from(n).unwrap()));
    let name = || Some("serve-0".to_owned());
    let (mut journal, made) = Journal::start(instance, name(), sealing.clone(), START).unwrap();
    add(made);
    let mut allowed = Event::new(at(250), Verdict::Allowed, "acls.pii.allow[0]");
    allowed.principal = Some("arn:aws:iam::111122223333:role/analyst".into());
    allowed.proof = Some(Proof::StsCredentials);
    allowed.purpose = Some("fraud".into());
    allowed.dataset = Some("payments".into());
    allowed.label = Some("card.number".into());
    allowed.policy_version = Some(3);
    allowed.count = 12;
    allowed.place = Some(Place {
        source: "payments.sealed".into(),
        partition: Some(0),
        first: Some(100),
        last: Some(111),
    });
    let mut refused = Event::new(at(1_000), Verdict::Refused, "nothing in acls.pii.allow names it");
    refused.principal = Some("oidc:https://idp.example#sub=\"x\"\n\u{1}\\é".into());
    refused.proof = Some(Proof::Oidc);
    refused.count = 1;
    refused.place = Some(Place {
        source: "request".into(),
        partition: None,
        first: None,
        last: None,
    });
    let last = add(journal.append(vec![allowed, refused], at(1_000)).unwrap());
    let line = Line::parse(last.as_bytes()).unwrap();
    let (_, made) = Journal::resume(&line, &last, name(), 17, sealing, at(3_600_000)).unwrap();
    add(made);
    assert_eq!(written.lines, LOG.lines().collect::<Vec<_>>());
    assert_eq!(written.checkpoints, CHECKPOINTS.lines().collect::<Vec<_>>());
}

#[test]
fn the_golden_audit_log_is_whole_and_says_what_it_said() {
    let mut verifier = Verifier::new([key().thumbprint()], false);
    CHECKPOINTS
        .lines()
        .for_each(|line| verifier.checkpoint(line.as_bytes()));
    LOG.lines().for_each(|line| verifier.line(line.as_bytes()));
    let report = verifier.finish();
    assert!(report.is_whole(), "{:?}", report.breaks);
    assert_eq!((report.lines, report.decisions, report.checkpoints), (7, 2, 3));
    let decision = Line::parse(LOG.lines().nth(2).unwrap().as_bytes()).unwrap();
    let Body::Decision(event) = decision.body else {
        panic!("a decision")
    };
    assert_eq!(
        (event.decision, event.count, event.at),
        (Verdict::Allowed, 12, UnixMillis(START.0 + 250))
    );
}
