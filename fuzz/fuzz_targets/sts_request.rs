//! Presigned STS requests and answers: no input panics, and what may be sent goes to one host and asks one thing.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use sealflow::acl::Identity;
use sealflow::acl::sts::{CheckedRequest, StsEndpoint, StsTrust, caller};
use sealflow::clock::UnixMillis;

const ORIGIN: &str = "https://sts.eu-west-1.amazonaws.com";
const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z

static TRUST: LazyLock<StsTrust> = LazyLock::new(|| {
    let region = StsEndpoint::of_region("eu-west-1").unwrap();
    StsTrust::new(vec![StsEndpoint::Global, region], "read.example.com").unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
        if let Ok(url) = serde_json::to_string(text) {
            let json = format!(r#"{{"url":{url},"headers":{{"x-sealflow-server-id":"read.example.com"}}}}"#);
            check(&URL_SAFE_NO_PAD.encode(json));
        }
        let _ = StsEndpoint::of_origin(text).map(|endpoint| assert_eq!(endpoint.origin(), text));
    }
    check(&URL_SAFE_NO_PAD.encode(bytes));
    if let Ok(identity) = caller(200, bytes) {
        assert!(!matches!(identity, Identity::Oidc { .. }));
        assert_eq!(Identity::from_arn(&identity.to_string()), Ok(identity));
    }
});

fn check(text: &str) {
    let Ok(request) = CheckedRequest::parse(text, &TRUST, NOW) else {
        return;
    };
    let url = request.url();
    let rest = url
        .strip_prefix(ORIGIN)
        .or_else(|| url.strip_prefix("https://sts.amazonaws.com"));
    let query = rest.and_then(|rest| rest.strip_prefix("/?")).unwrap();
    assert!(
        query
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~%=&".contains(&b)),
        "{query}"
    );
    let is = |wanted: &str| query.split('&').filter(|pair| *pair == wanted).count() == 1;
    assert!(is("Action=GetCallerIdentity") && is("Version=2011-06-15"));
    assert_eq!(query.matches("Action=").count(), 1);
    assert_eq!(request.server_id(), "read.example.com");
    assert!(request.counts_until() > NOW && request.counts_until().0 - request.signed_at().0 <= 300_000);
}
