//! A request to STS that proves whose the credentials are, signed and not sent: for services that ask STS themselves
//! (docs/format.md, "Presigned requests").

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealflow::jose::Thumbprint;
use sealflow::keys::KeyServiceError;
use sealflow::secret::SecretString;

use crate::client::AwsKms;

/// How long a request counts: what services take at most.
const EXPIRES: Duration = Duration::from_secs(300);
const SERVER_ID_HEADER: &str = "x-sealflow-server-id";
const SEAL_TO_HEADER: &str = "x-sealflow-seal-to";
const MAX_SERVER_ID_BYTES: usize = 128;

/// Why nothing was signed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PresignError {
    /// No credentials.
    #[error(transparent)]
    Credentials(#[from] KeyServiceError),
    /// Neither an option nor the AWS configuration names a region.
    #[error("no region: requests are signed for the STS of one")]
    NoRegion,
    /// It could not stand in a header.
    #[error("not the name of a service: 1 to {MAX_SERVER_ID_BYTES} visible ASCII characters")]
    BadServerId,
    /// Not an origin.
    #[error("not an STS endpoint: https://HOST[:PORT] without a slash at the end")]
    BadEndpoint,
    /// The signer refused what it was given.
    #[error("the request cannot be signed")]
    Internal,
}

impl PresignError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoRegion => "give --region, or set AWS_REGION",
            Self::BadServerId => "give `identity.server_id` of the service, as its operator names it",
            Self::BadEndpoint => "leave it out for AWS's own, or write it as the service's operator lists it",
            _ => "check the AWS configuration",
        }
    }
}

impl AwsKms {
    /// Presigns `GetCallerIdentity` for the service of that name, at the STS of the configured region or at another
    /// `endpoint`. With `seal_to` the request commits to the key of that name: answers may be sealed to it. Text form: base64url of
    /// `{"url", "headers"}`. Whoever has it can show it to that service for five minutes.
    ///
    /// # Errors
    /// [`PresignError`]
    pub async fn presign_identity(
        &self,
        endpoint: Option<&str>,
        server_id: &str,
        seal_to: Option<Thumbprint>,
        now: SystemTime,
    ) -> Result<SecretString, PresignError> {
        let is_name = (1..=MAX_SERVER_ID_BYTES).contains(&server_id.len());
        if !is_name || !server_id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PresignError::BadServerId);
        }
        let region = self.region().ok_or(PresignError::NoRegion)?;
        let origin = match endpoint {
            None => format!("https://sts.{region}.amazonaws.com"),
            Some(endpoint) if is_origin(endpoint) => endpoint.to_owned(),
            Some(_) => return Err(PresignError::BadEndpoint),
        };
        let credentials = self.current_credentials().await?;
        presigned(&origin, &region, (server_id, seal_to), &credentials, now).ok_or(PresignError::Internal)
    }
}

fn is_origin(endpoint: &str) -> bool {
    let host = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"));
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    host.is_some_and(|host| !host.is_empty() && host.bytes().all(is_plain))
}

fn presigned(
    origin: &str,
    region: &str,
    (server_id, seal_to): (&str, Option<Thumbprint>),
    credentials: &Credentials,
    now: SystemTime,
) -> Option<SecretString> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(EXPIRES);
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(settings)
        .build()
        .ok()?
        .into();
    let mut url = format!("{origin}/?Action=GetCallerIdentity&Version=2011-06-15");
    let seal_to = seal_to.map(|key| key.to_string());
    let mut headers = vec![(SERVER_ID_HEADER, server_id)];
    headers.extend(seal_to.as_deref().map(|key| (SEAL_TO_HEADER, key)));
    let request = SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::Bytes(b"")).ok()?;
    let (instructions, _) = sign(request, &parameters).ok()?.into_parts();
    for (name, value) in instructions.params() {
        url.push('&');
        url.push_str(name);
        url.push('=');
        encode(value, &mut url);
    }
    // Neither a URL of this form nor a server's name of visible characters needs escapes but these.
    let name = server_id.replace('\\', "\\\\").replace('"', "\\\"");
    let seal_to = seal_to.map_or(String::new(), |key| format!(r#""{SEAL_TO_HEADER}":"{key}","#));
    let json = format!(r#"{{"url":"{url}","headers":{{{seal_to}"{SERVER_ID_HEADER}":"{name}"}}}}"#);
    Some(SecretString::new(URL_SAFE_NO_PAD.encode(json)))
}

/// As SigV4 does: everything but unreserved characters (RFC 3986, section 2.3) as `%XX`.
fn encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}
