//! What a policy says about the enclave: the RSA keys that clients seal to, and which images of the worker may have them.

use std::collections::BTreeMap;

use super::client::{ClientRule, keys, session};
use super::key_path::KeyPath;
use super::model::{ColumnRule, Flow};
use super::parse::check_name;
use super::problem::{Found, Problem};
use super::raw::{RawEnclave, RawMeasurements};
use super::rsa_key::RsaKey;

const MAX_IMAGE_NAME_BYTES: usize = 64;
/// Most images that may have keys at a time: each is a value of a condition in a key policy.
const MAX_IMAGES: usize = 16;
/// SHA-384 in hexadecimal digits.
const DIGITS: usize = 96;

/// What the enclave worker opens. Columns with `flow: enclave` need it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnclaveRule {
    /// The RSA keys that clients seal to, and where their sessions ride. It has no `mac`.
    pub client: ClientRule,
    /// The images of the worker that may have keys, by name.
    pub measurements: BTreeMap<String, Measurements>,
}

/// What was measured of an image of the worker: SHA-384 as 96 lower-case hexadecimal digits each. None is all zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measurements {
    /// The image: PCR0 on Nitro.
    pub image: String,
    /// Kernel and boot ramdisk: PCR1.
    pub kernel: Option<String>,
    /// The application: PCR2.
    pub application: Option<String>,
    /// The IAM role of the parent instance: PCR3.
    pub parent_role: Option<String>,
    /// The parent instance: PCR4.
    pub parent_instance: Option<String>,
    /// The certificate that signed the image: PCR8.
    pub signing_certificate: Option<String>,
}

impl Measurements {
    /// Each that is said: the number of its PCR, and its digits.
    pub fn pcrs(&self) -> impl Iterator<Item = (u8, &str)> {
        let others = [
            (1, &self.kernel),
            (2, &self.application),
            (3, &self.parent_role),
            (4, &self.parent_instance),
            (8, &self.signing_certificate),
        ];
        let others = others
            .into_iter()
            .filter_map(|(n, digits)| Some((n, digits.as_deref()?)));
        std::iter::once((0, self.image.as_str())).chain(others)
    }
}

/// Checks the block `enclave`, and that columns that need it have it. `others` are keys that clients seal to for the backend.
pub(super) fn enclave(
    raw: Option<&RawEnclave>,
    dataset: &str,
    columns: &[ColumnRule],
    (data_keys, client): (&[&str], Option<&ClientRule>),
) -> Result<Option<EnclaveRule>, Found> {
    let at = KeyPath::root().key("enclave");
    let Some(raw) = raw else {
        return match columns.iter().position(|rule| rule.flow == Flow::Enclave) {
            Some(n) => Err(Problem::NoEnclave.at(&KeyPath::root().key("columns").index(n).key("flow"))),
            None => Ok(None),
        };
    };
    let mut seen: Vec<RsaKey> = client.into_iter().flat_map(ClientRule::rsa_keys).cloned().collect();
    // A KMS key that the backend may use for one of these would open what is not for the backend.
    let of_backend = client.into_iter().flat_map(|client| {
        let macs = client.mac.iter().flat_map(super::client::MacRule::arns);
        client.arns().chain(macs)
    });
    let taken: Vec<&str> = data_keys.iter().copied().chain(of_backend).collect();
    let keys = keys(&raw.keys, dataset, &taken, &mut seen, &at.key("keys"))?;
    let images = at.key("measurements");
    if raw.measurements.is_empty() {
        return Err(Problem::NoMeasurements.at(&images));
    }
    if raw.measurements.len() > MAX_IMAGES {
        return Err(Problem::TooManyEntries { max: MAX_IMAGES }.at(&images));
    }
    let mut all = BTreeMap::new();
    for (name, raw) in &raw.measurements {
        let at = images.key(name);
        check_name(name, "image", MAX_IMAGE_NAME_BYTES).map_err(|problem| problem.at(&at))?;
        all.insert(name.clone(), measurements(raw, &at)?);
    }
    let session = match &raw.session {
        Some(text) => {
            let path = session(text, columns, &at.key("session"))?;
            // One field holds one session, which is sealed to one of them.
            if client.is_some_and(|client| client.session.as_ref() == Some(&path)) {
                return Err(Problem::SharedSession.at(&at.key("session")));
            }
            Some(path)
        }
        None => None,
    };
    Ok(Some(EnclaveRule {
        client: ClientRule {
            keys,
            mac: None,
            session,
            keep_session: raw.keep_session,
        },
        measurements: all,
    }))
}

fn measurements(raw: &RawMeasurements, at: &KeyPath) -> Result<Measurements, Found> {
    let digits = |text: &str, name: &str| {
        let is_hex = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
        // Zeros are what an enclave in debug mode says of itself.
        if !is_hex || text.bytes().all(|b| b == b'0') {
            return Err(Problem::BadMeasurement.at(&at.key(name)));
        }
        Ok(text.to_ascii_lowercase())
    };
    let optional = |text: &Option<String>, name: &str| text.as_deref().map(|text| digits(text, name)).transpose();
    Ok(Measurements {
        image: digits(&raw.image, "image")?,
        kernel: optional(&raw.kernel, "kernel")?,
        application: optional(&raw.application, "application")?,
        parent_role: optional(&raw.parent_role, "parent_role")?,
        parent_instance: optional(&raw.parent_instance, "parent_instance")?,
        signing_certificate: optional(&raw.signing_certificate, "signing_certificate")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{ClientSealed, Policy};

    const DATA: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const OTHER: &str = "arn:aws:kms:eu-central-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab";
    const WEB: &str = "arn:aws:kms:eu-central-1:111122223333:key/eeeeeeee-12ab-34cd-56ef-1234567890ab";
    const BACKEND: &str = "arn:aws:kms:eu-central-1:111122223333:key/dddddddd-12ab-34cd-56ef-1234567890ab";

    fn image() -> String {
        "a1".repeat(48)
    }

    fn block(keys: &str, rest: &str) -> String {
        format!(
            "enclave: {{ keys: {{ {keys} }}, measurements: {{ v1: {{ image: \"{}\" }} }}{rest} }}",
            image()
        )
    }

    fn web() -> String {
        format!("web: {{ arn: \"{WEB}\" }}")
    }

    fn policy(column: &str, rest: &str) -> String {
        format!(
            "dataset: d\nversion: 1\nkeys:\n  k: {{ arn: \"{DATA}\" }}\n  o: {{ arn: \"{OTHER}\" }}\n  \"t-{{tenant}}\": {{ arn: \"{DATA}\" }}\n\
             acls: {{ a: {{}} }}\nlease: required\ncolumns:\n  - {{ path: x, acl: a, flow: enclave, {column} }}\n{rest}\n"
        )
    }

    fn refused(yaml: &str) -> (String, Problem) {
        let error = Policy::parse(yaml.as_bytes()).unwrap_err();
        assert!(!error.help().is_empty(), "{error} without help");
        (error.path, *error.problem)
    }

    #[test]
    fn enclave_columns_have_keys_and_images_and_a_lease() {
        let rest = ", session: meta.enclave, keep_session: true";
        let parsed = Policy::parse(policy("key: k", &block(&web(), rest)).as_bytes()).unwrap();
        assert_eq!(parsed.unsupported(), []);
        let rule = parsed.enclave.as_ref().unwrap();
        assert_eq!(rule.client.arns().collect::<Vec<_>>(), [WEB]);
        assert_eq!(
            rule.client.session.as_ref().map(ToString::to_string).as_deref(),
            Some("meta.enclave")
        );
        assert!(rule.client.keep_session && rule.client.mac.is_none());
        let image = image();
        assert_eq!(
            rule.measurements["v1"].pcrs().collect::<Vec<_>>(),
            [(0, image.as_str())]
        );

        let none = policy("key: k", "");
        assert_eq!(refused(&none), ("columns[0].flow".to_owned(), Problem::NoEnclave));
        let whole = policy("key: k", &block(&web(), ""));
        let no_lease = whole.replace("lease: required", "lease: none");
        assert_eq!(refused(&no_lease), ("lease".to_owned(), Problem::EnclaveWithoutLease));
        for (good, bad, path, problem) in [
            (web(), String::new(), "enclave.keys", Problem::NoClientKeys),
            (
                format!("v1: {{ image: \"{image}\" }}"),
                String::new(),
                "enclave.measurements",
                Problem::NoMeasurements,
            ),
            (
                image.clone(),
                "0".repeat(96),
                "enclave.measurements.v1.image",
                Problem::BadMeasurement,
            ),
            (
                image.clone(),
                "a1".repeat(32),
                "enclave.measurements.v1.image",
                Problem::BadMeasurement,
            ),
            (
                image.clone(),
                "g1".repeat(48),
                "enclave.measurements.v1.image",
                Problem::BadMeasurement,
            ),
            (
                format!("image: \"{image}\""),
                format!("image: \"{image}\", parent_role: \"{}\"", "00".repeat(48)),
                "enclave.measurements.v1.parent_role",
                Problem::BadMeasurement,
            ),
        ] {
            let yaml = whole.replace(&good, &bad);
            assert_ne!(yaml, whole);
            assert_eq!(refused(&yaml), (path.to_owned(), problem), "{bad}");
        }
    }

    #[test]
    fn keys_of_the_enclave_are_nobody_elses() {
        for arn in [DATA, OTHER] {
            let yaml = policy("key: k", &block(&format!("web: {{ arn: \"{arn}\" }}"), ""));
            assert_eq!(
                refused(&yaml),
                ("enclave.keys.web.arn".to_owned(), Problem::SharedClientKey)
            );
        }
        let client = |mac: &str| format!("client: {{ keys: {{ web: {{ arn: \"{WEB}\" }} }}, session: s{mac} }}");
        let both = policy("key: k", &format!("{}\n{}", client(""), block(&web(), "")));
        assert_eq!(
            refused(&both),
            ("enclave.keys.web.arn".to_owned(), Problem::SharedClientKey)
        );
        let of_macs = policy(
            "key: k",
            &format!(
                "{}\n{}",
                client(&format!(", mac: {{ arn: \"{BACKEND}\" }}")),
                block(&format!("web: {{ arn: \"{BACKEND}\" }}"), "")
            ),
        );
        assert_eq!(
            refused(&of_macs),
            ("enclave.keys.web.arn".to_owned(), Problem::SharedClientKey)
        );
        let own = format!("web: {{ arn: \"{BACKEND}\" }}");
        let session = policy("key: k", &format!("{}\n{}", client(""), block(&own, ", session: s")));
        assert_eq!(
            refused(&session),
            ("enclave.session".to_owned(), Problem::SharedSession)
        );
        assert!(Policy::parse(policy("key: k", &format!("{}\n{}", client(""), block(&own, ""))).as_bytes()).is_ok());
    }

    #[test]
    fn what_an_enclave_column_cannot_be() {
        let with = |column: &str, rest: &str| refused(&policy(column, &format!("{}\n{rest}", block(&web(), ""))));
        let at = |path: &str, problem| (path.to_owned(), problem);
        assert_eq!(
            with("key: \"t-{tenant}\"", ""),
            at("columns[0].key", Problem::TemplateInEnclave)
        );
        assert_eq!(
            with("key: k, at: column", ""),
            at("columns[0].at", Problem::ColumnInEnclave)
        );
        for sealed in ["authenticated", "once"] {
            let found = with(&format!("key: k, client_sealed: {sealed}"), "");
            assert_eq!(found, at("columns[0].client_sealed", Problem::ProofInEnclave));
        }
        let optional = policy("key: k, client_sealed: optional", &block(&web(), ""));
        let parsed = Policy::parse(optional.as_bytes()).unwrap();
        assert_eq!(parsed.columns[0].client_sealed, ClientSealed::Optional);
        let shared = || Problem::SharedEnclaveKey { key: "k".to_owned() };
        let other =
            policy("key: k", &block(&web(), "")).replace("columns:\n", "columns:\n  - { path: y, key: k, acl: a }\n");
        assert_eq!(refused(&other), at("columns[0].key", shared()));
        assert_eq!(
            with("key: k", "dead_letters: { key: o, acl: a }"),
            at("dead_letters.key", Problem::DeadLettersInEnclave)
        );
    }
}
