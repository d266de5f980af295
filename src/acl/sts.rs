//! Presigned STS requests: whether a caller's `GetCallerIdentity` may be sent on, and who its answer says it is.
//!
//! A caller signs a request to STS and hands it over unsent; the service checks it, sends it exactly so, and STS says
//! whose signature it is. The service never holds the caller's credentials. What is checked here keeps the service from
//! being made to send anything else (another host, action or header), and keeps a request that was made for one service
//! from counting at another: the service's own name is a signed header. Sends nothing itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Identity, IdentityError};
use crate::clock::UnixMillis;
use crate::jose::{Thumbprint, from_base64url, from_strict_json};

/// The header that names the service for which a request was signed.
pub const SERVER_ID_HEADER: &str = "x-sealflow-server-id";
/// The longest presigned request in its text form, in bytes: session tokens take most of it.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// The longest answer of STS, in bytes. Usual ones have about 500.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// How old a request may be.
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// How far in the future it may have been signed: clocks differ.
pub const MAX_SKEW: Duration = Duration::from_secs(60);
/// The most that `X-Amz-Expires` may say, in seconds.
pub const MAX_EXPIRES: u64 = 900;
/// The longest name of a service, in bytes.
pub const MAX_SERVER_ID_BYTES: usize = 128;

/// The header that names the key to which answers are to be sealed, by its RFC 7638 thumbprint.
pub const SEAL_TO_HEADER: &str = "x-sealflow-seal-to";
const SIGNED_HEADERS: &str = "host;x-sealflow-server-id";
const SIGNED_HEADERS_SEAL_TO: &str = "host;x-sealflow-seal-to;x-sealflow-server-id";
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Where STS is. Nothing else is asked, whatever a request says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StsEndpoint {
    /// `https://sts.amazonaws.com`, whose signatures name `us-east-1`.
    Global,
    /// `https://sts.REGION.amazonaws.com`.
    Regional(String),
    /// Another one, as `http://127.0.0.1:5000`: for tests, VPC endpoints and other partitions.
    Other(String),
}

impl StsEndpoint {
    /// The endpoint of a region; `None` for what is no region's name.
    #[must_use]
    pub fn of_region(region: &str) -> Option<Self> {
        let is_region = (1..=32).contains(&region.len())
            && region
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        is_region.then(|| Self::Regional(region.to_owned()))
    }

    /// An endpoint by its origin: `https://HOST[:PORT]`, or `http://` on loopback. `None` for anything else.
    #[must_use]
    pub fn of_origin(origin: &str) -> Option<Self> {
        let (scheme, host) = origin.split_once("://")?;
        let is_host = (1..=255).contains(&host.len())
            && host
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b));
        let is_loopback = || {
            let address = host.parse::<std::net::SocketAddr>();
            address.is_ok_and(|address| address.ip().is_loopback())
        };
        let is_taken = scheme == "https" || scheme == "http" && is_loopback();
        (is_host && is_taken).then(|| Self::Other(origin.to_owned()))
    }

    /// Scheme and host, without a slash at the end.
    #[must_use]
    pub fn origin(&self) -> String {
        match self {
            Self::Global => "https://sts.amazonaws.com".to_owned(),
            Self::Regional(region) => format!("https://sts.{region}.amazonaws.com"),
            Self::Other(origin) => origin.clone(),
        }
    }

    /// The region that a signature must name, where that is known.
    fn region(&self) -> Option<&str> {
        match self {
            Self::Global => Some("us-east-1"),
            Self::Regional(region) => Some(region),
            Self::Other(_) => None,
        }
    }
}

/// What a service takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StsTrust {
    endpoints: Vec<StsEndpoint>,
    server_id: String,
}

impl StsTrust {
    /// Requests to these endpoints, signed for `server_id`: 1 to 128 visible ASCII characters. `None` for another name,
    /// which could not stand in a header.
    #[must_use]
    pub fn new(endpoints: Vec<StsEndpoint>, server_id: impl Into<String>) -> Option<Self> {
        let server_id = server_id.into();
        let is_name =
            (1..=MAX_SERVER_ID_BYTES).contains(&server_id.len()) && server_id.bytes().all(|b| b.is_ascii_graphic());
        is_name.then_some(Self { endpoints, server_id })
    }

    /// The name of this service.
    #[must_use]
    pub fn server_id(&self) -> &str {
        &self.server_id
    }
}

/// Why a presigned request, or the answer to it, proves nothing. Never holds a part of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StsError {
    /// Over [`MAX_REQUEST_BYTES`].
    #[error("the presigned request is longer than {MAX_REQUEST_BYTES} bytes")]
    TooLarge,
    /// Not base64url of `{"url": …, "headers": {…}}`.
    #[error("not a presigned request (base64url of {{\"url\", \"headers\"}})")]
    Malformed,
    /// The headers are others than the server's name.
    #[error("the presigned request must have exactly the header {SERVER_ID_HEADER}")]
    OtherHeaders,
    /// Signed for another service.
    #[error("the presigned request is for another server")]
    OtherServer,
    /// Scheme, host, port or path are not those of an endpoint.
    #[error("the presigned request is not for an STS endpoint that this server asks")]
    OtherHost,
    /// The query is not written as SigV4 writes it: encodings, characters, empty parts.
    #[error("the query of the presigned request is malformed")]
    BadQuery,
    /// A parameter stands twice.
    #[error("the presigned request has a parameter twice")]
    DuplicateParameter,
    /// A parameter that such a request does not have.
    #[error("the presigned request has a parameter that GetCallerIdentity does not have")]
    OtherParameter,
    /// A parameter is missing.
    #[error("the presigned request lacks {name}")]
    MissingParameter {
        /// Which.
        name: &'static str,
    },
    /// `Action` or `Version` are others.
    #[error("the presigned request is not GetCallerIdentity of 2011-06-15")]
    OtherAction,
    /// A value is of the wrong form.
    #[error("{name} of the presigned request is malformed")]
    BadParameter {
        /// Which.
        name: &'static str,
    },
    /// The signature does not cover the host and the server's name, or covers more.
    #[error("the presigned request must sign exactly the headers {SIGNED_HEADERS}")]
    OtherSignedHeaders,
    /// The credential's scope is of another day, region or service.
    #[error("the credential of the presigned request is of another day, region or service")]
    OtherScope,
    /// Older than [`MAX_AGE`], or than `X-Amz-Expires`.
    #[error("the presigned request was signed at {at}, too long ago")]
    TooOld {
        /// When.
        at: UnixMillis,
    },
    /// Signed in the future.
    #[error("the presigned request was signed at {at}, in the future")]
    NotYet {
        /// When.
        at: UnixMillis,
    },
    /// `X-Amz-Expires` beyond [`MAX_EXPIRES`].
    #[error("the presigned request is for more than {MAX_EXPIRES} seconds")]
    TooLong,
    /// STS does not accept the signature or the credentials.
    #[error("STS does not accept the presigned request")]
    Refused,
    /// STS did not answer, or not yet.
    #[error("STS does not answer")]
    Unavailable,
    /// Not what `GetCallerIdentity` answers.
    #[error("STS gave an answer that is not one of GetCallerIdentity")]
    BadAnswer,
    /// Who it is, no policy can name.
    #[error("the caller is {0}")]
    NotAnIdentity(IdentityError),
}

impl StsError {
    /// What to do about it.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Self::TooOld { .. } => "sign a new request: one counts for five minutes",
            Self::NotYet { .. } => "set the clock of the machine that signs",
            Self::TooLong => "sign for 900 seconds or less",
            Self::OtherServer => "sign for this server's id, which its operator names",
            Self::OtherHost | Self::OtherScope => "sign for the STS endpoint of a region that this server lists",
            Self::Refused => "check the credentials that signed, and whether they ended",
            Self::Unavailable => "try again",
            Self::BadAnswer => "check that the configured endpoint is STS",
            Self::NotAnIdentity(error) => error.help(),
            _ => "presign GetCallerIdentity (GET) with exactly the headers host and x-sealflow-server-id",
        }
    }

    /// Whether the same request may do later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable)
    }
}

/// A presigned request that may be sent: `GET` [`url`](Self::url) with [`SERVER_ID_HEADER`] and no other header.
///
/// Whoever has it can send it until it is too old, so it has no `Debug` and is kept no longer than needed.
pub struct CheckedRequest {
    url: String,
    server_id: String,
    seal_to: Option<Thumbprint>,
    signed_at: UnixMillis,
    counts_until: UnixMillis,
}

/// The text form: base64url of this, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Presigned {
    url: String,
    headers: BTreeMap<String, String>,
}

impl CheckedRequest {
    /// Checks a presigned request as a caller sends it.
    ///
    /// # Errors
    /// [`StsError`]
    pub fn parse(text: &str, trust: &StsTrust, now: UnixMillis) -> Result<Self, StsError> {
        if text.len() > MAX_REQUEST_BYTES {
            return Err(StsError::TooLarge);
        }
        let json = from_base64url(text).and_then(|json| from_strict_json(&json));
        let presigned = json.and_then(|json: Value| serde_json::from_value::<Presigned>(json).ok());
        let Presigned { url, headers } = presigned.ok_or(StsError::Malformed)?;
        let seal_to = match headers.get(SEAL_TO_HEADER) {
            Some(text) => Some(text.parse().map_err(|_| StsError::OtherHeaders)?),
            None => None,
        };
        match headers.get(SERVER_ID_HEADER) {
            Some(id) if headers.len() == 1 + usize::from(seal_to.is_some()) => {
                if *id != trust.server_id {
                    return Err(StsError::OtherServer);
                }
            }
            _ => return Err(StsError::OtherHeaders),
        }
        let asked = |endpoint: &&StsEndpoint| {
            let rest = url.strip_prefix(&endpoint.origin());
            rest.is_some_and(|rest| rest.starts_with("/?"))
        };
        let endpoint = trust.endpoints.iter().find(asked).ok_or(StsError::OtherHost)?;
        let query = &url[endpoint.origin().len() + 2..];
        let signed = match seal_to {
            Some(_) => SIGNED_HEADERS_SEAL_TO,
            None => SIGNED_HEADERS,
        };
        let (signed_at, counts_until) = check_query(query, endpoint, signed, now)?;
        Ok(Self {
            url,
            server_id: trust.server_id.clone(),
            seal_to,
            signed_at,
            counts_until,
        })
    }

    /// Where to send it: byte for byte as it was signed, with an endpoint's own scheme and host.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value of [`SERVER_ID_HEADER`].
    #[must_use]
    pub fn server_id(&self) -> &str {
        &self.server_id
    }

    /// The value of [`SEAL_TO_HEADER`]: the key that the caller commits to.
    #[must_use]
    pub fn seal_to(&self) -> Option<Thumbprint> {
        self.seal_to
    }

    /// When it was signed.
    #[must_use]
    pub fn signed_at(&self) -> UnixMillis {
        self.signed_at
    }

    /// The first moment at which it does not count any more.
    #[must_use]
    pub fn counts_until(&self) -> UnixMillis {
        self.counts_until
    }
}

/// When the request was signed, and until when it counts.
fn check_query(
    query: &str,
    endpoint: &StsEndpoint,
    signed_headers: &str,
    now: UnixMillis,
) -> Result<(UnixMillis, UnixMillis), StsError> {
    let mut parameters = Parameters::read(query)?;
    if parameters.take("Action")? != "GetCallerIdentity" || parameters.take("Version")? != "2011-06-15" {
        return Err(StsError::OtherAction);
    }
    if parameters.take("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
        return Err(StsError::BadParameter {
            name: "X-Amz-Algorithm",
        });
    }
    if parameters.take("X-Amz-SignedHeaders")? != signed_headers {
        return Err(StsError::OtherSignedHeaders);
    }
    let signature = parameters.take("X-Amz-Signature")?;
    if signature.len() != 64 || !signature.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(StsError::BadParameter {
            name: "X-Amz-Signature",
        });
    }
    let date = parameters.take("X-Amz-Date")?;
    let signed_at = amz_date(&date).ok_or(StsError::BadParameter { name: "X-Amz-Date" })?;
    check_scope(&parameters.take("X-Amz-Credential")?, &date[..8], endpoint)?;
    let expires = parameters.take("X-Amz-Expires")?;
    let expires = seconds(&expires).ok_or(StsError::BadParameter { name: "X-Amz-Expires" })?;
    // Only temporary credentials have one.
    drop(parameters.take("X-Amz-Security-Token"));
    if !parameters.0.is_empty() {
        return Err(StsError::OtherParameter);
    }
    if expires > MAX_EXPIRES {
        return Err(StsError::TooLong);
    }
    if signed_at > now.plus(MAX_SKEW) {
        return Err(StsError::NotYet { at: signed_at });
    }
    let counts_until = signed_at.plus(MAX_AGE.min(Duration::from_secs(expires)));
    if now >= counts_until {
        return Err(StsError::TooOld { at: signed_at });
    }
    Ok((signed_at, counts_until))
}

/// The parameters of a query, each once, decoded.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn read(query: &str) -> Result<Self, StsError> {
        let mut parameters = BTreeMap::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').ok_or(StsError::BadQuery)?;
            if name.is_empty() || !name.bytes().all(is_unreserved) {
                return Err(StsError::BadQuery);
            }
            let value = percent_decoded(value).ok_or(StsError::BadQuery)?;
            if parameters.insert(name.to_owned(), value).is_some() {
                return Err(StsError::DuplicateParameter);
            }
        }
        Ok(Self(parameters))
    }

    fn take(&mut self, name: &'static str) -> Result<String, StsError> {
        self.0.remove(name).ok_or(StsError::MissingParameter { name })
    }
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// The text of a value, if it is encoded as SigV4 does: unreserved characters as they are, all others as `%XX` in capitals.
/// There is one such spelling for each text, and none with a character that ends a query.
fn percent_decoded(value: &str) -> Option<String> {
    let hex = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            decoded.push(Some(*byte).filter(|byte| is_unreserved(*byte))?);
            continue;
        }
        let (high, low) = (hex(*rest.first()?)?, hex(*rest.get(1)?)?);
        rest = &rest[2..];
        decoded.push(Some(high << 4 | low).filter(|byte| !is_unreserved(*byte))?);
    }
    String::from_utf8(decoded).ok()
}

/// `20260131T120000Z`.
fn amz_date(text: &str) -> Option<UnixMillis> {
    let is_form = text.len() == 16
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
    if !is_form {
        return None;
    }
    let part = |from: usize, to: usize| &text[from..to];
    let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
    let (hour, minute, second) = (part(9, 11), part(11, 13), part(13, 15));
    format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z").parse().ok()
}

/// 1 to any number of seconds.
fn seconds(text: &str) -> Option<u64> {
    let is_form = (1..=6).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_form)
}

/// `AKID/20260131/eu-west-1/sts/aws4_request`.
fn check_scope(credential: &str, day: &str, endpoint: &StsEndpoint) -> Result<(), StsError> {
    let parts: Vec<&str> = credential.split('/').collect();
    let [key, of_day, region, service, terminator] = parts[..] else {
        return Err(StsError::BadParameter {
            name: "X-Amz-Credential",
        });
    };
    let is_key = (1..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric());
    if !is_key {
        return Err(StsError::BadParameter {
            name: "X-Amz-Credential",
        });
    }
    let is_region = endpoint.region().is_none_or(|of_endpoint| of_endpoint == region);
    if of_day != day || service != "sts" || terminator != "aws4_request" || !is_region {
        return Err(StsError::OtherScope);
    }
    Ok(())
}

/// Who STS says that a caller is, from the status and body of its answer.
///
/// # Errors
/// [`StsError::Refused`], [`StsError::Unavailable`], [`StsError::BadAnswer`], [`StsError::NotAnIdentity`]
pub fn caller(status: u16, body: &[u8]) -> Result<Identity, StsError> {
    match status {
        200 => {}
        429 | 500..=599 => return Err(StsError::Unavailable),
        // The query protocol of AWS throttles with 400.
        400..=499 if is_throttling(body) => return Err(StsError::Unavailable),
        400..=499 => return Err(StsError::Refused),
        _ => return Err(StsError::BadAnswer),
    }
    if body.len() > MAX_ANSWER_BYTES {
        return Err(StsError::BadAnswer);
    }
    let (arn, account) = read_answer(body).ok_or(StsError::BadAnswer)?;
    let identity = Identity::from_arn(&arn).map_err(StsError::NotAnIdentity)?;
    let same_account = match &identity {
        Identity::Role { account: of_arn, .. } | Identity::User { account: of_arn, .. } => *of_arn == account,
        Identity::Oidc { .. } => false,
    };
    if same_account {
        Ok(identity)
    } else {
        Err(StsError::BadAnswer)
    }
}

/// The caller's ARN in an answer that [`caller`] took: it says more than the identity where it holds the name of a session,
/// which may be a person's. For a log; nothing is decided by it.
#[must_use]
pub fn caller_arn(body: &[u8]) -> Option<String> {
    read_answer(body).map(|(arn, _)| arn)
}

/// Whether the `Code` of an error says that there were too many requests.
fn is_throttling(body: &[u8]) -> bool {
    let text = std::str::from_utf8(body)
        .ok()
        .filter(|text| text.len() <= MAX_ANSWER_BYTES);
    let options = roxmltree::ParsingOptions {
        nodes_limit: 64,
        ..roxmltree::ParsingOptions::default()
    };
    let document = text.and_then(|text| roxmltree::Document::parse_with_options(text, options).ok());
    document.is_some_and(|document| {
        let mut codes = document.descendants().filter(|node| node.tag_name().name() == "Code");
        codes.any(|code| {
            code.text()
                .is_some_and(|code| code.starts_with("Throttl") || code == "RequestLimitExceeded")
        })
    })
}

/// `Arn` and `Account` of the one result, of which each member stands once. No document type, no entities of its own.
fn read_answer(body: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(body).ok()?;
    let options = roxmltree::ParsingOptions {
        allow_dtd: false,
        nodes_limit: 64,
        ..roxmltree::ParsingOptions::default()
    };
    let document = roxmltree::Document::parse_with_options(text, options).ok()?;
    let root = document.root_element();
    if !root.has_tag_name((NAMESPACE, "GetCallerIdentityResponse")) {
        return None;
    }
    let only = |parent: roxmltree::Node<'_, '_>, name: &str| {
        let mut named = parent.children().filter(|child| child.has_tag_name((NAMESPACE, name)));
        let found = named.next().map(|node| node.id())?;
        named.next().is_none().then_some(found)
    };
    let result = document.get_node(only(root, "GetCallerIdentityResult")?)?;
    let text_of = |name: &str| {
        let node = document.get_node(only(result, name)?)?;
        let has_text_only = node.children().count() == 1 && node.first_child()?.is_text();
        node.text()
            .filter(|text| has_text_only && text.len() <= 2_048)
            .map(str::to_owned)
    };
    text_of("UserId")?;
    Some((text_of("Arn")?, text_of("Account")?))
}
