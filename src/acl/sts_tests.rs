//! Tests of presigned requests and of what STS answers to them.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use proptest::prelude::*;
use serde_json::json;

use super::Identity;
use super::sts::{
    CheckedRequest, MAX_REQUEST_BYTES, SEAL_TO_HEADER, SERVER_ID_HEADER, StsEndpoint, StsError, StsTrust, caller,
};
use crate::clock::UnixMillis;
use crate::jose::base64url;

const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const SERVER: &str = "read.example.com";
/// What `aws-sigv4` makes of it, but for keys and signature.
const URL: &str = "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
    &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ASIAIOSFODNN7EXAMPLE%2F20260101%2Feu-west-1%2Fsts%2Faws4_request\
    &X-Amz-Date=20260101T000000Z&X-Amz-Expires=300&X-Amz-SignedHeaders=host%3Bx-sealflow-server-id\
    &X-Amz-Security-Token=abc%2B%2F%3D%3D\
    &X-Amz-Signature=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn trust() -> StsTrust {
    let endpoints = vec![StsEndpoint::Global, StsEndpoint::of_region("eu-west-1").unwrap()];
    StsTrust::new(endpoints, SERVER).unwrap()
}

fn text(url: &str) -> String {
    base64url(
        json!({"url": url, "headers": {SERVER_ID_HEADER: SERVER}})
            .to_string()
            .as_bytes(),
    )
}

fn check(url: &str) -> Result<String, StsError> {
    check_at(url, NOW)
}

fn check_at(url: &str, now: UnixMillis) -> Result<String, StsError> {
    CheckedRequest::parse(&text(url), &trust(), now).map(|request| request.url().to_owned())
}

fn replaced(from: &str, to: &str) -> Result<String, StsError> {
    assert!(URL.contains(from), "{from}");
    check(&URL.replacen(from, to, 1))
}

#[test]
fn a_request_as_it_should_be_is_sent_on_byte_for_byte() {
    assert_eq!(check(URL).as_deref(), Ok(URL));
    let without_token = URL.replace("&X-Amz-Security-Token=abc%2B%2F%3D%3D", "");
    assert_eq!(check(&without_token).as_deref(), Ok(without_token.as_str()));
    let global = URL
        .replace("sts.eu-west-1.", "sts.")
        .replace("%2Feu-west-1%2F", "%2Fus-east-1%2F");
    assert_eq!(check(&global).as_deref(), Ok(global.as_str()));
    let request = CheckedRequest::parse(&text(URL), &trust(), NOW).unwrap();
    assert_eq!((request.server_id(), request.signed_at()), (SERVER, NOW));
}

#[test]
fn a_request_may_commit_to_the_key_of_its_answers_and_then_signs_that_too() {
    let key = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
    let parse = |url: &str, headers: serde_json::Value| {
        let text = base64url(json!({"url": url, "headers": headers}).to_string().as_bytes());
        CheckedRequest::parse(&text, &trust(), NOW).map(|request| request.seal_to().map(|key| key.to_string()))
    };
    let both = URL.replace(
        "host%3Bx-sealflow-server-id",
        "host%3Bx-sealflow-seal-to%3Bx-sealflow-server-id",
    );
    let headers = json!({SERVER_ID_HEADER: SERVER, SEAL_TO_HEADER: key});
    assert_eq!(parse(&both, headers.clone()), Ok(Some(key.to_owned())));
    assert_eq!(parse(URL, json!({SERVER_ID_HEADER: SERVER})), Ok(None));
    // The header without its signature, the signature without the header.
    assert_eq!(parse(URL, headers), Err(StsError::OtherSignedHeaders));
    assert_eq!(
        parse(&both, json!({SERVER_ID_HEADER: SERVER})),
        Err(StsError::OtherSignedHeaders)
    );
    for bad in [json!("x"), json!(format!("{key}A")), json!("")] {
        let headers = json!({SERVER_ID_HEADER: SERVER, SEAL_TO_HEADER: bad});
        assert_eq!(parse(&both, headers), Err(StsError::OtherHeaders));
    }
    assert_eq!(parse(&both, json!({SEAL_TO_HEADER: key})), Err(StsError::OtherHeaders));
}

#[test]
fn another_host_scheme_port_or_path_is_never_asked() {
    let host = "https://sts.eu-west-1.amazonaws.com/?";
    for other in [
        "https://sts.eu-west-2.amazonaws.com/?",
        "https://sts.eu-west-1.amazonaws.com.evil.example.com/?",
        "https://evil.example.com/?",
        "http://sts.eu-west-1.amazonaws.com/?",
        "HTTPS://sts.eu-west-1.amazonaws.com/?",
        "https://STS.eu-west-1.amazonaws.com/?",
        "https://sts.eu-west-1.amazonaws.com:443/?",
        "https://sts.eu-west-1.amazonaws.com@evil.example.com/?",
        "https://user@sts.eu-west-1.amazonaws.com/?",
        "https://sts.eu-west-1.amazonaws.com./?",
        "https://sts.eu-west-1.amazonaws.com?",
        "https://sts.eu-west-1.amazonaws.com//?",
        "https://sts.eu-west-1.amazonaws.com/x?",
        "https://sts.eu-west-1.amazonaws.com/../?",
        "https://sts.eu-west-1.amazonaws.com\\@evil.example.com/?",
        "https://169.254.169.254/?",
        " https://sts.eu-west-1.amazonaws.com/?",
        "//sts.eu-west-1.amazonaws.com/?",
    ] {
        assert_eq!(replaced(host, other), Err(StsError::OtherHost), "{other}");
    }
    assert_eq!(
        replaced("%2Feu-west-1%2F", "%2Fus-east-1%2F"),
        Err(StsError::OtherScope)
    );
    let regional_scope_at_global = replaced("sts.eu-west-1.amazonaws", "sts.amazonaws");
    assert_eq!(regional_scope_at_global, Err(StsError::OtherScope));
}

#[test]
fn another_action_version_or_parameter_is_refused() {
    for (from, to) in [
        ("Action=GetCallerIdentity", "Action=AssumeRole"),
        ("Action=GetCallerIdentity", "Action=getcalleridentity"),
        ("Action=GetCallerIdentity", "Action="),
        ("2011-06-15", "2011-06-16"),
    ] {
        assert_eq!(replaced(from, to), Err(StsError::OtherAction), "{to}");
    }
    for more in [
        "&RoleArn=x",
        "&X-Amz-Content-Sha256=x",
        "&action=x",
        "&x-amz-date=20260101T000000Z",
    ] {
        assert_eq!(check(&format!("{URL}{more}")), Err(StsError::OtherParameter), "{more}");
    }
    for twice in [
        "&Action=GetCallerIdentity",
        "&Action=AssumeRole",
        "&X-Amz-Date=20260101T000000Z",
    ] {
        assert_eq!(
            check(&format!("{URL}{twice}")),
            Err(StsError::DuplicateParameter),
            "{twice}"
        );
    }
    for part in URL.split_once('?').unwrap().1.split('&') {
        let name = part.split('=').next().unwrap();
        let answer = check(&URL.replace(&format!("{part}&"), "").replace(&format!("&{part}"), ""));
        match answer {
            Ok(_) => assert_eq!(name, "X-Amz-Security-Token"),
            Err(StsError::MissingParameter { name: missing }) => assert_eq!(missing, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn spellings_that_two_readers_could_take_for_different_requests_are_refused() {
    for (from, to) in [
        ("Action=", "%41ction="),
        ("=GetCaller", "=%47etCaller"),
        ("%2F2026", "/2026"),
        ("%2F2026", "%2f2026"),
        ("abc%2B", "abc+"),
        ("abc%2B", "abc%"),
        ("abc%2B", "abc%2"),
        ("abc%2B", "abc%ZZ"),
        ("abc%2B", "abc%FF"),
        ("abc%2B", "abc "),
        ("abc%2B", "abc\r\nx: y"),
        ("abc%2B", "abc#"),
        ("abc%2B", "abc?"),
        ("abc%2B", "abc;"),
        ("abc%2B", "abc="),
        ("abc%2B", "é"),
        ("&Version", "&&Version"),
        ("&Version", "&x&Version"),
        ("?Action", "?&Action"),
        ("&Version", ";Version"),
    ] {
        assert_eq!(replaced(from, to), Err(StsError::BadQuery), "{to}");
    }
    assert_eq!(check(&format!("{URL}#x")), Err(StsError::BadQuery));
    assert_eq!(check(&format!("{URL}&")), Err(StsError::BadQuery));
    // Decoded once, and not again.
    let credential = Err(StsError::BadParameter {
        name: "X-Amz-Credential",
    });
    assert_eq!(replaced("%2F2026", "%252F2026"), credential);
    // Encoded, a `&` is part of the value that it stands in.
    assert_eq!(
        replaced("GetCallerIdentity", "GetCallerIdentity%26Action%3DAssumeRole"),
        Err(StsError::OtherAction)
    );
}

#[test]
fn the_signature_covers_exactly_host_and_server_id() {
    for headers in [
        "host",
        "x-sealflow-server-id",
        "host%3Bx-amz-target%3Bx-sealflow-server-id",
        "x-sealflow-server-id%3Bhost",
        "host%3BX-Sealflow-Server-Id",
        "host%3Bx-sealflow-server-id%3B",
        "",
    ] {
        let url = URL.replace("host%3Bx-sealflow-server-id", headers);
        assert_eq!(check(&url), Err(StsError::OtherSignedHeaders), "{headers}");
    }
}

#[test]
fn a_request_for_another_server_is_refused() {
    let parse = |headers: serde_json::Value| {
        let text = base64url(json!({"url": URL, "headers": headers}).to_string().as_bytes());
        CheckedRequest::parse(&text, &trust(), NOW).map(drop)
    };
    assert_eq!(parse(json!({SERVER_ID_HEADER: SERVER})), Ok(()));
    for id in ["other.example.com", "READ.example.com", "read.example.com ", ""] {
        assert_eq!(parse(json!({SERVER_ID_HEADER: id})), Err(StsError::OtherServer), "{id}");
    }
    for headers in [
        json!({}),
        json!({"X-Sealflow-Server-Id": SERVER}),
        json!({SERVER_ID_HEADER: SERVER, "host": "evil.example.com"}),
        json!({SERVER_ID_HEADER: SERVER, "x-amz-target": "x"}),
    ] {
        assert_eq!(parse(headers.clone()), Err(StsError::OtherHeaders), "{headers}");
    }
    for headers in [
        json!([]),
        json!(null),
        json!({SERVER_ID_HEADER: 1}),
        json!({SERVER_ID_HEADER: [SERVER]}),
    ] {
        assert_eq!(parse(headers.clone()), Err(StsError::Malformed), "{headers}");
    }
}

#[test]
fn a_request_counts_for_five_minutes_or_less_if_it_says_so() {
    let after = |seconds: u64| UnixMillis(NOW.0 + seconds * 1_000);
    let too_old = Err(StsError::TooOld { at: NOW });
    assert!(check_at(URL, after(299)).is_ok());
    assert_eq!(check_at(URL, after(300)), too_old);
    let longer = URL.replace("Expires=300", "Expires=900");
    assert!(check_at(&longer, after(299)).is_ok());
    assert_eq!(check_at(&longer, after(300)), too_old);
    let shorter = URL.replace("Expires=300", "Expires=15");
    assert!(check_at(&shorter, after(14)).is_ok());
    assert_eq!(check_at(&shorter, after(15)), too_old);
    assert_eq!(replaced("Expires=300", "Expires=901"), Err(StsError::TooLong));
    let before = |seconds: u64| UnixMillis(NOW.0 - seconds * 1_000);
    assert!(check_at(URL, before(60)).is_ok());
    assert_eq!(check_at(URL, before(61)), Err(StsError::NotYet { at: NOW }));
    // An endpoint whose region is not known, and clocks at midnight: the day of the scope is that of the date.
    assert_eq!(replaced("%2F20260101%2F", "%2F20251231%2F"), Err(StsError::OtherScope));
}

#[test]
fn values_of_the_wrong_form_are_refused() {
    let bad = |name| Err(StsError::BadParameter { name });
    for value in ["0", "-1", "1.5", "+5", "", "0300", "18446744073709551616", "1e2"] {
        let answer = replaced("Expires=300", &format!("Expires={}", value.replace('+', "%2B")));
        assert_eq!(answer, bad("X-Amz-Expires"), "{value}");
    }
    for value in [
        "20260101T000000",
        "20261301T000000Z",
        "20260101T250000Z",
        "2026-01-01T00:00:00Z",
        "20260101 000000Z",
    ] {
        let value = value.replace(':', "%3A").replace(' ', "%20");
        assert_eq!(
            replaced("Date=20260101T000000Z", &format!("Date={value}")),
            bad("X-Amz-Date"),
            "{value}"
        );
    }
    for value in ["", "A%2F20260101", "%2F20260101%2Feu-west-1%2Fsts%2Faws4_request"] {
        let url = URL.replace(
            "ASIAIOSFODNN7EXAMPLE%2F20260101%2Feu-west-1%2Fsts%2Faws4_request",
            value,
        );
        assert_eq!(check(&url), bad("X-Amz-Credential"), "{value}");
    }
    for (from, to) in [("%2Fsts%2F", "%2Fkms%2F"), ("aws4_request", "aws5_request")] {
        assert_eq!(replaced(from, to), Err(StsError::OtherScope), "{to}");
    }
    assert_eq!(replaced("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), bad("X-Amz-Algorithm"));
    assert_eq!(replaced("Signature=a", "Signature=A"), bad("X-Amz-Signature"));
    assert_eq!(replaced("Signature=aa", "Signature=a"), bad("X-Amz-Signature"));
}

#[test]
fn the_text_form_is_read_strictly() {
    let parse = |text: &str| CheckedRequest::parse(text, &trust(), NOW).map(drop);
    let headers = format!(r#"{{"{SERVER_ID_HEADER}":"{SERVER}"}}"#);
    for json in [
        String::new(),
        "[]".to_owned(),
        format!(r#"{{"url":"{URL}"}}"#),
        format!(r#"{{"url":"{URL}","url":"{URL}","headers":{headers}}}"#),
        format!(r#"{{"url":"{URL}","headers":{headers},"method":"POST"}}"#),
        format!(r#"{{"url":1,"headers":{headers}}}"#),
    ] {
        assert_eq!(parse(&base64url(json.as_bytes())), Err(StsError::Malformed), "{json}");
    }
    assert_eq!(parse(&format!("{}=", text(URL))), Err(StsError::Malformed));
    assert_eq!(parse(&"a".repeat(MAX_REQUEST_BYTES + 1)), Err(StsError::TooLarge));
}

#[test]
fn endpoints_are_regions_or_origins_and_nothing_looser() {
    assert_eq!(
        StsEndpoint::of_region("eu-west-1").unwrap().origin(),
        "https://sts.eu-west-1.amazonaws.com"
    );
    for region in ["", "EU-west-1", "eu-west-1.evil.com/", "a/b", &"a".repeat(33)] {
        assert_eq!(StsEndpoint::of_region(region), None, "{region}");
    }
    for origin in [
        "https://sts.cn-north-1.amazonaws.com.cn",
        "https://vpce-1.sts.example.com:8443",
        "http://127.0.0.1:5000",
        "http://[::1]:1",
    ] {
        assert_eq!(StsEndpoint::of_origin(origin).unwrap().origin(), origin);
    }
    for origin in [
        "http://sts.example.com",
        "http://10.0.0.1:80",
        "http://localhost:80",
        "https://",
        "https://a/",
        "https://a?b",
        "https://a@b",
        "ftp://a",
        "a",
    ] {
        assert_eq!(StsEndpoint::of_origin(origin), None, "{origin}");
    }
    for id in ["", "a b", "é", &"a".repeat(129)] {
        assert_eq!(StsTrust::new(vec![], id), None, "{id}");
    }
}

fn answer(arn: &str, account: &str) -> String {
    format!(
        r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>{arn}</Arn>
    <UserId>AROAIOSFODNN7EXAMPLE:session</UserId>
    <Account>{account}</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata><RequestId>1234</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"#
    )
}

const SESSION: &str = "arn:aws:sts::111122223333:assumed-role/analyst/monday";

#[test]
fn the_answer_says_who_the_caller_is() {
    let of = |body: &str| caller(200, body.as_bytes());
    let role = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    assert_eq!(of(&answer(SESSION, "111122223333")), Ok(role));
    assert_eq!(of(&answer(SESSION, "999999999999")), Err(StsError::BadAnswer));
    let root = of(&answer("arn:aws:iam::111122223333:root", "111122223333"));
    assert!(matches!(root, Err(StsError::NotAnIdentity(_))));
    for (status, error) in [
        (400, StsError::Refused),
        (403, StsError::Refused),
        (429, StsError::Unavailable),
        (500, StsError::Unavailable),
        (503, StsError::Unavailable),
        (204, StsError::BadAnswer),
        (301, StsError::BadAnswer),
    ] {
        let body = answer(SESSION, "111122223333");
        assert_eq!(caller(status, body.as_bytes()), Err(error), "{status}");
    }
}

#[test]
fn answers_of_another_form_are_refused() {
    let good = answer(SESSION, "111122223333");
    let arn = format!("<Arn>{SESSION}</Arn>");
    for (from, to) in [
        ("2011-06-15/", "2011-06-16/"),
        ("GetCallerIdentityResponse", "GetCallerIdentityResponsf"),
        ("GetCallerIdentityResult", "AssumeRoleResult"),
        (arn.as_str(), ""),
        (arn.as_str(), &format!("{arn}{arn}")),
        (arn.as_str(), &format!("<Arn>{SESSION}<!-- -->x</Arn>")),
        (arn.as_str(), &format!("<Arn><b>{SESSION}</b></Arn>")),
        (arn.as_str(), &format!("<x:Arn xmlns:x=\"y\">{SESSION}</x:Arn>")),
        ("<UserId>AROAIOSFODNN7EXAMPLE:session</UserId>", ""),
        ("</GetCallerIdentityResponse>", ""),
    ] {
        let body = good.replace(from, to);
        assert_ne!(body, good);
        assert_eq!(caller(200, body.as_bytes()), Err(StsError::BadAnswer), "{to}");
    }
    let entity = format!(
        "<!DOCTYPE x [<!ENTITY a \"{SESSION}\">]>{}",
        good.replace(SESSION, "&a;")
    );
    let many = good.replace(&arn, &format!("{arn}{}", "<x/>".repeat(100)));
    for body in ["", "{}", &entity, &many, &" ".repeat(20_000)] {
        assert_eq!(caller(200, body.as_bytes()), Err(StsError::BadAnswer), "{body}");
    }
    assert_eq!(caller(200, &[0xff, 0xfe]), Err(StsError::BadAnswer));
}

#[test]
fn too_many_requests_are_no_refusal() {
    let error = |code: &str| {
        let namespace = "https://sts.amazonaws.com/doc/2011-06-15/";
        format!(
            "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>Sender</Type><Code>{code}</Code></Error></ErrorResponse>"
        )
    };
    for (code, expected) in [
        ("Throttling", StsError::Unavailable),
        ("ThrottlingException", StsError::Unavailable),
        ("RequestLimitExceeded", StsError::Unavailable),
        ("SignatureDoesNotMatch", StsError::Refused),
        ("ExpiredToken", StsError::Refused),
    ] {
        assert_eq!(caller(400, error(code).as_bytes()), Err(expected), "{code}");
    }
}

proptest! {
    #[test]
    fn a_query_with_any_byte_changed_is_refused_or_asks_the_same_host_for_the_same_thing(at in 0..URL.len(), byte in 0_u8..128) {
        let mut url = URL.as_bytes().to_vec();
        url[at] = byte;
        let url = String::from_utf8(url).unwrap();
        if check(&url).is_ok() {
            prop_assert!(url.starts_with("https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15&"));
            prop_assert!(url.bytes().all(|b| b.is_ascii_graphic() && b != b'#' && b != b'\\'));
        }
    }

    #[test]
    fn no_answer_makes_the_reader_panic(body in "[ -~]{0,200}", status in 0_u16..1000) {
        let _ = caller(status, body.as_bytes());
    }
}
