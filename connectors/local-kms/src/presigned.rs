//! Presigned requests: Signature Version 4 in the query of a GET, checked as STS does. Source: AWS General Reference,
//! "Authenticating requests: using query parameters".

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::sigv4::{
    Authorization, SignatureError, SignedRequest, canonical_request, check_canonical, hex, parse_amz_date,
    parse_credential, parse_hex_32, parse_signed_headers,
};

/// The longest query, in bytes.
const MAX_QUERY: usize = 16 * 1024;
/// The most that `X-Amz-Expires` may say: seven days.
const MAX_EXPIRES: u64 = 604_800;
/// How far in the future a request may be signed.
const MAX_SKEW: Duration = Duration::from_secs(300);

/// The query of a presigned request, decoded.
#[derive(Clone, Debug)]
pub struct Presigned(BTreeMap<String, String>);

impl Presigned {
    /// Reads a query. Every parameter stands once.
    ///
    /// # Errors
    /// [`SignatureError`]
    pub fn parse(query: &str) -> Result<Self, SignatureError> {
        let malformed = SignatureError::Incomplete("the query is malformed");
        if query.len() > MAX_QUERY {
            return Err(malformed);
        }
        let mut parameters = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').ok_or(malformed)?;
            let (name, value) = (decoded(name).ok_or(malformed)?, decoded(value).ok_or(malformed)?);
            if parameters.insert(name, value).is_some() {
                return Err(SignatureError::Incomplete("a parameter is there twice"));
            }
        }
        Ok(Self(parameters))
    }

    /// A parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What an Authorization header would say.
    ///
    /// # Errors
    /// [`SignatureError`]
    pub fn authorization(&self) -> Result<Authorization<'_>, SignatureError> {
        use SignatureError::Incomplete;
        if self.get("X-Amz-Algorithm") != Some("AWS4-HMAC-SHA256") {
            return Err(Incomplete("X-Amz-Algorithm must be AWS4-HMAC-SHA256"));
        }
        let [access_key_id, date, region, service] =
            parse_credential(self.get("X-Amz-Credential").unwrap_or_default())?;
        let signature = parse_hex_32(self.get("X-Amz-Signature").unwrap_or_default());
        Ok(Authorization {
            access_key_id,
            date,
            region,
            service,
            signed_headers: parse_signed_headers(self.get("X-Amz-SignedHeaders").unwrap_or_default())?,
            signature: signature.ok_or(Incomplete("Signature must be 64 lower-case hexadecimal digits"))?,
        })
    }

    /// Checks what needs no secret: which headers are signed, the time, the scope.
    ///
    /// # Errors
    /// [`SignatureError`]
    pub fn check_scope(
        &self,
        request: &SignedRequest<'_>,
        authorization: &Authorization<'_>,
        now_millis: u64,
        (regions, service): (&[&str], &str),
    ) -> Result<(), SignatureError> {
        use SignatureError::Incomplete;
        let signed = |name: &str| authorization.signed_headers.contains(&name);
        let unsigned = |(name, _): &(&str, &str)| name.starts_with("x-amz-") && !signed(name);
        if !signed("host") || request.headers.iter().any(unsigned) {
            return Err(Incomplete("host and every x-amz- header must be signed"));
        }
        let count = |wanted: &str| request.headers.iter().filter(|(name, _)| *name == wanted).count();
        if authorization.signed_headers.iter().any(|name| count(name) != 1) {
            return Err(Incomplete("a signed header must be there once"));
        }
        let time = self.get("X-Amz-Date").unwrap_or_default();
        let signed_at = parse_amz_date(time).ok_or(Incomplete("X-Amz-Date must have the form YYYYMMDDTHHMMSSZ"))?;
        let expires = self.get("X-Amz-Expires").and_then(|text| text.parse::<u64>().ok());
        let expires = expires.filter(|seconds| (1..=MAX_EXPIRES).contains(seconds));
        let expires = expires.ok_or(Incomplete("X-Amz-Expires must be 1 to 604800"))?;
        let skew = u64::try_from(MAX_SKEW.as_millis()).unwrap_or(u64::MAX);
        if signed_at > now_millis.saturating_add(skew) || now_millis >= signed_at.saturating_add(expires * 1_000) {
            return Err(SignatureError::Skewed);
        }
        if !time.starts_with(authorization.date) {
            return Err(SignatureError::WrongScope("date"));
        }
        if !regions.contains(&authorization.region) {
            return Err(SignatureError::WrongScope("region"));
        }
        if authorization.service != service {
            return Err(SignatureError::WrongScope("service"));
        }
        Ok(())
    }

    /// Checks the signature itself, in constant time.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`]
    pub fn check_signature(
        &self,
        request: &SignedRequest<'_>,
        authorization: &Authorization<'_>,
        secret_access_key: &str,
    ) -> Result<(), SignatureError> {
        let parameters = self.0.iter().filter(|(name, _)| *name != "X-Amz-Signature");
        let mut pairs: Vec<String> = parameters
            .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
            .collect();
        pairs.sort_unstable();
        let payload_hash = hex(&Sha256::digest(request.body));
        let canonical = canonical_request(request, &pairs.join("&"), &authorization.signed_headers, &payload_hash);
        let time = self.get("X-Amz-Date").unwrap_or_default();
        check_canonical(&canonical, time, authorization, secret_access_key)
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(
            u8::from_str_radix(digits, 16)
                .ok()
                .filter(|_| !digits.starts_with('+'))?,
        );
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// As SigV4 does: everything but unreserved characters as `%XX`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_unreserved(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_never_panics_and_texts_come_back(query in ".{0,200}", text in ".{0,50}") {
            if let Ok(presigned) = Presigned::parse(&query) {
                let _ = presigned.authorization();
            }
            prop_assert_eq!(decoded(&encoded(&text)), Some(text));
        }
    }
}
