//! What can be wrong with a policy or domain document, and what to do about it.

use super::arn::ArnError;
use super::key_path::KeyPath;
use super::path::PathError;
use super::template::TemplateError;
use super::yaml::{Place, YamlError, locate};
use crate::acl::PrincipalError;
use crate::clock::NotAMoment;

/// Why a policy or domain document is refused: where, what, and ([`help`](Self::help)) what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", Place { path, line: *line, column: *column })]
#[non_exhaustive]
pub struct PolicyError {
    /// Where: `columns[2].bind_row`; empty for the whole document.
    pub path: String,
    /// Line, from 1, where it is known.
    pub line: Option<u64>,
    /// Column, from 1, where it is known.
    pub column: Option<u64>,
    /// What is wrong.
    pub problem: Box<Problem>,
}

impl PolicyError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        self.problem.help()
    }

    /// The error of `found` in the document `text`.
    pub(super) fn locate(text: &str, found: Found) -> Self {
        let (line, column) = locate(text, &found.path).unzip();
        Self {
            path: found.path.to_string(),
            line,
            column,
            problem: Box::new(found.problem),
        }
    }
}

impl From<YamlError> for PolicyError {
    fn from(error: YamlError) -> Self {
        let YamlError {
            path,
            line,
            column,
            message,
            help,
        } = error;
        Self {
            path,
            line,
            column,
            problem: Box::new(Problem::Yaml { message, help }),
        }
    }
}

/// A problem and its place, before line and column are looked up.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: KeyPath,
    pub(super) problem: Problem,
}

impl Problem {
    /// This problem at `path`.
    pub(super) fn at(self, path: &KeyPath) -> Found {
        Found {
            path: path.clone(),
            problem: self,
        }
    }
}

/// What is wrong with a policy or domain document. Names and paths of the policy itself may be repeated;
/// nothing of a record ever comes here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Problem {
    #[error("{message}")]
    Yaml { message: String, help: String },
    #[error("{what} names are 1 to {max} characters of A-Z, a-z, 0-9, `.`, `_`, `-`, other than `.` and `..`")]
    BadName { what: &'static str, max: usize },
    #[error("versions are whole numbers from 1 to {max}")]
    BadVersion { max: u64 },
    #[error("a policy needs at least one column")]
    NoColumns,
    #[error("more than {max} columns")]
    TooManyColumns { max: usize },
    #[error("not a column path: {0}")]
    BadPath(PathError),
    #[error("the header {name} is Sealflow's own: it cannot be a column")]
    ReservedHeader { name: &'static str },
    #[error("{path} is already columns[{first}]")]
    DuplicatePath { path: String, first: usize },
    #[error("{inner} lies inside {outer}, which is sealed whole")]
    CoveringPaths { outer: String, inner: String },
    #[error("a label is 1 to {max} characters of A-Z, a-z, 0-9, `.`, `_`, `-`, or a canonical column path")]
    BadLabel { max: usize },
    #[error("the label {label} is reserved")]
    ReservedLabel { label: String },
    #[error("the label {label} is already that of columns[{first}]")]
    DuplicateLabel { label: String, first: usize },
    #[error("the labels of key {key} with ACL {acl} take {bytes} bytes in each key envelope, at most {max} fit")]
    LabelsTooLong {
        key: String,
        acl: String,
        bytes: usize,
        max: usize,
    },
    #[error("a column needs `{what}`")]
    Missing { what: &'static str },
    #[error("no {what} named {name}{}", did_you_mean(.meant))]
    Unknown {
        what: &'static str,
        name: String,
        meant: Option<String>,
    },
    #[error("{0}")]
    BadArn(ArnError),
    #[error("not a key name: {0}")]
    BadKeyName(TemplateError),
    #[error("some names fit both {first} and {second}, so that one name could mean two keys")]
    OverlappingKeys { first: String, second: String },
    #[error("max_age is 1s to 24h")]
    BadMaxAge,
    #[error("max_live is 1 to {max}")]
    BadMaxLive { max: u64 },
    #[error("max_live is for templates; {name} has one data key at a time")]
    MaxLiveWithoutTemplate { name: String },
    #[error("{path} is not clear: it is or lies inside the sealed column {column}")]
    NotClear { path: String, column: String },
    #[error("{path} cannot be a scalar: the column {column} lies inside it")]
    NotScalar { path: String, column: String },
    #[error("bind_row names one scalar of the record's value, so it has no [*] and is neither $key nor $header")]
    BadRow,
    #[error("a deterministic column cannot be bound to rows: equal values would no longer be equal bytes")]
    RowInDomain,
    #[error("`{what}` of a domain column comes from the domain's document")]
    FromDomain { what: &'static str },
    #[error("pad_to is 2 to 65536 bytes")]
    BadPadding,
    #[error("{derive} is already hints[{first}] of this column")]
    DuplicateHint { derive: &'static str, first: usize },
    #[error(
        "a deterministic column cannot have hints: the owner of its domain alone says who sees anything of its values"
    )]
    HintsInDomain,
    #[error("a hint needs flow: direct: it is derived from a plaintext that this backend never has under flow: {flow}")]
    HintsInFlow { flow: &'static str },
    #[error("{path} cannot have hints: they are members beside a member of the record's value")]
    HintsNowhere { path: String },
    #[error("a column that is sealed at: column cannot have hints: they stand beside each sealed value")]
    HintsOfColumn,
    #[error("a column with seal_nulls cannot have hints: a null has none, which would tell it from a value")]
    HintsOfNulls,
    #[error("the path {path} of this hint is taken: columns[{other}] is it, holds it or lies inside it")]
    HintPathTaken { path: String, other: usize },
    #[error("the label {label} of this hint is already that of columns[{other}]")]
    HintLabelTaken { label: String, other: usize },
    #[error("an hmac needs `domain`")]
    HmacWithoutDomain,
    #[error("last4 has no `domain`")]
    Last4WithDomain,
    #[error("the template {name} is not the key of the column")]
    TemplateOfHint { name: String },
    #[error("a deterministic column cannot be flow: {flow}: whoever can have guesses sealed could compare")]
    DeterministicFlow { flow: &'static str },
    #[error("`client_sealed` is for flow: hybrid")]
    ClientSealedInFlow,
    #[error("flow: hybrid needs a key that clients seal to")]
    NoClientKeys,
    #[error("a column of the enclave, but no `enclave`")]
    NoEnclave,
    #[error("no image of the worker may have keys")]
    NoMeasurements,
    #[error("a measurement is 96 hexadecimal digits, and not all zeros")]
    BadMeasurement,
    #[error("a dataset with enclave columns needs a lease, or an old policy could be shown to the worker for ever")]
    EnclaveWithoutLease,
    #[error("only hybrid columns have proofs of which client sealed a value")]
    ProofInEnclave,
    #[error("the sessions of `client` are in this field")]
    SharedSession,
    #[error("a key that clients seal to is used for nothing else, and only once")]
    SharedClientKey,
    #[error("values that say which client sealed them need `client.mac`")]
    NoClientMac,
    #[error("not the name of a client")]
    BadClientName,
    #[error("a value is at most seven days on its way, and more than none")]
    BadValueAge,
    #[error("values are remembered for as long as they may be on their way, and for at most 30 days")]
    BadRemember,
    #[error("a key of clients is either an RSA key in KMS (`arn`) or a `pair`")]
    ArnOrPair,
    #[error("not the public half of an RSA key of 2048, 3072 or 4096 bits (DER in base64)")]
    BadPairPublic,
    #[error("not a private half that KMS has wrapped (base64)")]
    BadPairWrapped,
    #[error("a session is one string in the value of a record")]
    BadSession,
    #[error("columns[{column}] is bound to the field of the session, which is cut out of stored records")]
    SessionIsRow { column: usize },
    #[error("a key template cannot be used by an enclave column: the host could choose the key")]
    TemplateInEnclave,
    #[error("an enclave column cannot be at: column: the host writes the table")]
    ColumnInEnclave,
    #[error("a deterministic column cannot be at: column: its equal values are to look equal")]
    ColumnInDomain,
    #[error("a header cannot be at: column: headers are not in tables")]
    ColumnOutsideValue,
    #[error("a column or footer of a table needs a plain key name, not the template {name}")]
    TemplateInTable { name: String },
    #[error("profile: duckdb needs an encrypted footer")]
    DuckDbFooter,
    #[error("profile: duckdb has one key for all, but column {column} is at: column under another key or ACL")]
    DuckDbKeys { column: String },
    #[error("the KMS key of {key} is used by enclave columns and by others")]
    SharedEnclaveKey { key: String },
    #[error("dead letters need a plain key name, not the template {name}")]
    TemplateForDeadLetters { name: String },
    #[error("dead letters have either `key` and `acl`, or a `recipient`")]
    DeadLettersForm,
    #[error(
        "dead letters of a dataset with enclave columns go to a recipient: what is under a key of this policy the host can open"
    )]
    DeadLettersInEnclave,
    #[error(
        "not an RSA key of 2048 to 4096 bits with the exponent 65537 (a JWK with kty RSA, n and e, for RSA-OAEP-256)"
    )]
    BadRecipient,
    #[error("the kid is not the thumbprint of this key (RFC 7638)")]
    WrongRecipientKid,
    #[error("this is a private key, and a policy is read by many")]
    PrivateRecipient,
    #[error("{0}")]
    BadPrincipal(PrincipalError),
    #[error("{0}")]
    BadUntil(NotAMoment),
    #[error("an empty list of purposes")]
    NoPurpose,
    #[error("not the thumbprint of a key: 43 characters of base64url")]
    BadLeaseKey,
    #[error("more than {max} entries")]
    TooManyEntries { max: usize },
    #[error("the {what} {name} is current, so it cannot be listed as previous too")]
    PreviousIsCurrent { what: &'static str, name: String },
    #[error("this key is listed as previous twice")]
    DuplicatePrevious,
    #[error("a key id is 32 hexadecimal digits in lower case")]
    BadKeyId,
}

fn did_you_mean(meant: &Option<String>) -> String {
    meant
        .as_ref()
        .map_or(String::new(), |meant| format!("; did you mean {meant}?"))
}

impl Problem {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Yaml { help, .. } => help.clone(),
            Self::BadName { .. } => "choose a name of these characters".to_owned(),
            Self::BadVersion { .. } => "write version: 1 for the first, and raise it with every change".to_owned(),
            Self::NoColumns => {
                "add what to seal under `columns`, for example { path: user.email, key: default, acl: pii }".to_owned()
            }
            Self::TooManyColumns { .. } => "seal a whole object by its path instead of each of its members".to_owned(),
            Self::BadPath(_) => {
                "write paths like user.email, cards[*].number, \"odd name\".x, $key or $header.NAME".to_owned()
            }
            Self::ReservedHeader { .. } => "remove the column: envelopes hold wrapped keys and names only".to_owned(),
            Self::DuplicatePath { .. } => "remove one of the two".to_owned(),
            Self::CoveringPaths { outer, .. } => format!("seal either {outer} or what lies inside it"),
            Self::BadLabel { .. } => "leave `label` out to use the path, or choose a plain word".to_owned(),
            Self::ReservedLabel { .. } => "choose a label that does not start with `$` or `domain:`".to_owned(),
            Self::DuplicateLabel { .. } => "give each column a label of its own, or leave `label` out".to_owned(),
            Self::LabelsTooLong { .. } => {
                "give the columns short labels, or spread them over several keys or ACLs".to_owned()
            }
            Self::Missing { what } => {
                format!("add `{what}:` with a name from `{what}s`, or `domain:` for a deterministic column")
            }
            Self::Unknown { what, .. } => match *what {
                "label" => "name a label of a current column that is no domain column".to_owned(),
                what => format!("add it under `{what}s`, or correct the name"),
            },
            Self::BadArn(error) => error.help().to_owned(),
            Self::BadKeyName(_) => "write a plain word (default) or a template (tenant-{tenant_id})".to_owned(),
            Self::OverlappingKeys { .. } => {
                "give them different literal parts, for example tenant-{tenant_id} and shared".to_owned()
            }
            Self::BadMaxAge => "write for example max_age: 1h".to_owned(),
            Self::BadMaxLive { .. } => "write for example max_live: 1000".to_owned(),
            Self::MaxLiveWithoutTemplate { .. } => "remove max_live".to_owned(),
            Self::NotClear { .. } | Self::NotScalar { .. } => {
                "name a scalar field that the policy leaves in clear".to_owned()
            }
            Self::BadRow => "name a field like order_id, one per record".to_owned(),
            Self::RowInDomain => {
                "remove bind_row, or seal the column randomised (with key and acl instead of domain)".to_owned()
            }
            Self::FromDomain { what } => {
                format!("remove `{what}` here; the domain's owner sets it in the domain document")
            }
            Self::BadPadding => "write for example pad_to: 32".to_owned(),
            Self::DeterministicFlow { .. } => {
                "use flow: direct, or seal the column randomised (with key and acl instead of domain)".to_owned()
            }
            Self::DuplicateHint { .. } => "remove one of the two".to_owned(),
            Self::HintsInDomain => {
                "remove `hints`, or seal the column randomised (with key and acl) with an hmac hint of that domain"
                    .to_owned()
            }
            Self::HintsInFlow { .. } => "remove `hints`, or use flow: direct".to_owned(),
            Self::HintsNowhere { .. } => {
                "remove `hints`; they go with paths that end in a name, like cards[*].number".to_owned()
            }
            Self::HintsOfNulls => "remove `seal_nulls`, or remove `hints`".to_owned(),
            Self::HintsOfColumn => "remove `at`, or remove `hints`".to_owned(),
            Self::HintPathTaken { .. } => "rename that field at its source, or remove the hint".to_owned(),
            Self::HintLabelTaken { .. } => "give the column another label".to_owned(),
            Self::HmacWithoutDomain => {
                "add the domain within which values are compared, made with `sealflow policy domain create`".to_owned()
            }
            Self::Last4WithDomain => "remove `domain`".to_owned(),
            Self::TemplateOfHint { .. } => "leave `key` out to use the column's, or name a plain key".to_owned(),
            Self::ClientSealedInFlow => "remove `client_sealed`, or use flow: hybrid or enclave".to_owned(),
            Self::NoClientKeys => {
                "add `client: { keys: { NAME: { arn: … } } }` with the full ARN of an RSA key in KMS".to_owned()
            }
            Self::NoEnclave => {
                "add `enclave: { keys: { NAME: { pair: … } }, measurements: { NAME: { image: … } } }`; `sealflow enclave build` \
                 prints measurements"
                    .to_owned()
            }
            Self::NoMeasurements | Self::BadMeasurement => {
                "take the digits from `sealflow enclave build`; zeros are an enclave in debug mode".to_owned()
            }
            Self::EnclaveWithoutLease => "add `lease: required`, and sign leases with `sealflow policy lease`".to_owned(),
            Self::ProofInEnclave => "write `client_sealed: required` or `optional`".to_owned(),
            Self::SharedSession => "name another field, or none: headers may hold both".to_owned(),
            Self::NoClientMac => {
                "add `client: { mac: { arn: … } }` with the full ARN of an HMAC_256 key in KMS".to_owned()
            }
            Self::BadClientName => "write 1 to 64 of A-Z a-z 0-9 . _ -".to_owned(),
            Self::BadValueAge => "write for example max_age: 10m".to_owned(),
            Self::BadRemember => "write for example remember: 24h, not less than max_age".to_owned(),
            Self::SharedClientKey => {
                "make an RSA key of its own in KMS (ENCRYPT_DECRYPT), or for pairs a symmetric key that wraps no data keys"
                    .to_owned()
            }
            Self::ArnOrPair => "write one of `arn: ARN` and `pair: { arn: …, public: …, wrapped: … }`".to_owned(),
            Self::BadPairPublic | Self::BadPairWrapped => {
                "take the pair from `sealflow keys pair`, which prints it".to_owned()
            }
            Self::BadSession => {
                "name a field without [*], for example session: meta.session, or leave it out for the header \
                 sealflow-session"
                    .to_owned()
            }
            Self::SessionIsRow { .. } => {
                "name another field as `session`: `bind_row` is one that stays and names the row".to_owned()
            }
            Self::TemplateInEnclave => "give enclave columns a plain key".to_owned(),
            Self::ColumnInEnclave => "remove `at`".to_owned(),
            Self::ColumnInDomain | Self::ColumnOutsideValue => "remove `at`: each value is sealed".to_owned(),
            Self::TemplateInTable { .. } => "name a plain key: a file has one key for each of its columns".to_owned(),
            Self::DuckDbFooter => "remove `footer`, or `profile`".to_owned(),
            Self::DuckDbKeys { .. } => {
                "give that column the table's key and ACL, seal its values (remove `at`), or remove `profile`"
                    .to_owned()
            }
            Self::SharedEnclaveKey { .. } => "make a KMS key of its own for the enclave columns".to_owned(),
            Self::TemplateForDeadLetters { .. } => {
                "name a plain key: a record that cannot be sealed may lack the template's fields".to_owned()
            }
            Self::DeadLettersForm => "write dead_letters: { key: NAME, acl: NAME }, or { recipient: JWK }".to_owned(),
            Self::DeadLettersInEnclave => {
                "make a key with `sealflow client keygen`, keep it away from every service, and write what it prints as \
                 dead_letters: { recipient: JWK }"
                    .to_owned()
            }
            Self::BadRecipient => "take the JWK that `sealflow client keygen` prints".to_owned(),
            Self::WrongRecipientKid => "leave `kid` out, or take the whole JWK from one place".to_owned(),
            Self::PrivateRecipient => {
                "do not use this key any more: make another with `sealflow client keygen`, and write what it prints"
                    .to_owned()
            }
            Self::BadPrincipal(error) => error.help().to_owned(),
            Self::BadUntil(_) => "write for example until: 2027-01-01T00:00:00Z".to_owned(),
            Self::NoPurpose => "remove `purposes` to allow any, or the grant to allow none".to_owned(),
            Self::BadLeaseKey => "take it from `sealflow policy keygen`, which prints it".to_owned(),
            Self::TooManyEntries { max } => format!("shorten it to {max}: groups and patterns name many at once"),
            Self::PreviousIsCurrent { .. } => "remove it under `previous`".to_owned(),
            Self::DuplicatePrevious => "remove one of the two".to_owned(),
            Self::BadKeyId => "take it from `sealflow keys`, which wrote it when the domain was made".to_owned(),
        }
    }
}
