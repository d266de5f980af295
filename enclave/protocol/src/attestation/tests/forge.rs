//! Makes documents whose every part can be another: certificates, header, fields.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384};

use crate::attestation::build::{self, SigningPoint};
use crate::attestation::{Document, Tier, Trust, syntax};

/// 2026-11-29 00:00:00.
pub(super) const NOW_MS: u64 = 1_795_910_400_000;
pub(super) const HOUR_MS: u64 = 3_600_000;

pub(super) fn document() -> Document {
    Document {
        module_id: "dev-software-nsm-1".to_owned(),
        timestamp_ms: NOW_MS,
        pcrs: [
            (0, vec![1; 48]),
            (1, vec![2; 48]),
            (2, vec![3; 48]),
            (3, vec![0; 48]),
            (8, vec![4; 48]),
        ]
        .into(),
        public_key: Some(vec![5; 294]),
        user_data: Some(Vec::new()),
        nonce: Some(vec![6; 32]),
        tier: Tier::DevSoftwareNsm,
    }
}

/// What the certificates of a chain will say: root, two between, leaf.
pub(super) struct Forge {
    pub(super) root: CertificateParams,
    pub(super) upper: CertificateParams,
    pub(super) lower: CertificateParams,
    pub(super) leaf: CertificateParams,
    pub(super) root_key: KeyPair,
    pub(super) upper_key: KeyPair,
    pub(super) lower_key: KeyPair,
}

/// A chain, and what signs under it.
pub(super) struct Made {
    pub(super) root: Vec<u8>,
    pub(super) upper: Vec<u8>,
    pub(super) lower: Vec<u8>,
    pub(super) leaf: Vec<u8>,
    pub(super) signer: EcdsaKeyPair,
    pub(super) document: Document,
}

impl Forge {
    pub(super) fn new() -> Self {
        let until_ms = NOW_MS + HOUR_MS;
        let key = || KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let mut upper = build::authority("upper", NOW_MS, until_ms).unwrap();
        upper.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let mut lower = build::authority("lower", NOW_MS, until_ms).unwrap();
        lower.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let mut leaf = build::certificate("leaf", NOW_MS, until_ms).unwrap();
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Self {
            root: build::authority("root", NOW_MS, until_ms).unwrap(),
            upper,
            lower,
            leaf,
            root_key: key(),
            upper_key: key(),
            lower_key: key(),
        }
    }

    pub(super) fn make(&self) -> Made {
        let signer = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let root_issuer = rcgen::Issuer::from_params(&self.root, &self.root_key);
        let upper_issuer = rcgen::Issuer::from_params(&self.upper, &self.upper_key);
        let lower_issuer = rcgen::Issuer::from_params(&self.lower, &self.lower_key);
        Made {
            root: self.root.self_signed(&self.root_key).unwrap().der().to_vec(),
            upper: self
                .upper
                .signed_by(&self.upper_key, &root_issuer)
                .unwrap()
                .der()
                .to_vec(),
            lower: self
                .lower
                .signed_by(&self.lower_key, &upper_issuer)
                .unwrap()
                .der()
                .to_vec(),
            leaf: self
                .leaf
                .signed_by(&SigningPoint(&signer), &lower_issuer)
                .unwrap()
                .der()
                .to_vec(),
            signer,
            document: document(),
        }
    }
}

impl Made {
    pub(super) fn new() -> Self {
        Forge::new().make()
    }

    /// Trust in its root.
    pub(super) fn trust(&self) -> Trust {
        Trust::with_dev_root(&self.root).unwrap()
    }

    /// Trust in its root, even where that cannot be one.
    pub(super) fn blind_trust(&self) -> Trust {
        Trust {
            roots: vec![(self.root.clone(), Tier::DevSoftwareNsm)],
        }
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        build::payload(&self.document, &self.leaf, &[&self.root, &self.upper, &self.lower])
    }

    pub(super) fn signed(&self) -> Vec<u8> {
        build::sign(&self.payload(), &self.signer).unwrap()
    }

    /// With other certificates, signed by who signs.
    pub(super) fn signed_under(&self, leaf: &[u8], bundle: &[&[u8]]) -> Vec<u8> {
        build::sign(&build::payload(&self.document, leaf, bundle), &self.signer).unwrap()
    }

    /// With another protected header, which the signature covers.
    pub(super) fn signed_with_header(&self, protected: &[u8]) -> Vec<u8> {
        let payload = self.payload();
        let mut signed = Vec::new();
        syntax::head(&mut signed, syntax::ARRAY, 4);
        syntax::text(&mut signed, "Signature1");
        syntax::bytes(&mut signed, protected);
        syntax::bytes(&mut signed, &[]);
        syntax::bytes(&mut signed, &payload);
        let signature = self.signer.sign(&SystemRandom::new(), &signed).unwrap();
        build::sign1(protected, &payload, signature.as_ref())
    }

    /// With these fields, in this order.
    pub(super) fn signed_fields(&self, fields: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut payload = Vec::new();
        syntax::head(&mut payload, syntax::MAP, fields.len() as u64);
        for (name, value) in fields {
            syntax::text(&mut payload, name);
            payload.extend(value);
        }
        build::sign(&payload, &self.signer).unwrap()
    }
}

/// All nine fields of a document, as CBOR.
pub(super) fn fields(made: &Made) -> Vec<(String, Vec<u8>)> {
    let mut pcrs = Vec::new();
    syntax::head(&mut pcrs, syntax::MAP, made.document.pcrs.len() as u64);
    for (index, value) in &made.document.pcrs {
        pcrs.push(*index);
        pcrs.extend(bytes(value));
    }
    let mut timestamp = Vec::new();
    syntax::head(&mut timestamp, syntax::UNSIGNED, made.document.timestamp_ms);
    let bundle: Vec<Vec<u8>> = [&made.root, &made.upper, &made.lower].map(|der| bytes(der)).into();
    let bundle: Vec<&[u8]> = bundle.iter().map(Vec::as_slice).collect();
    let fields = [
        ("module_id", text(&made.document.module_id)),
        ("digest", text("SHA384")),
        ("timestamp", timestamp),
        ("pcrs", pcrs),
        ("certificate", bytes(&made.leaf)),
        ("cabundle", array(&bundle)),
        ("public_key", bytes(&[5; 294])),
        ("user_data", bytes(&[])),
        ("nonce", bytes(&[6; 32])),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into()
}

pub(super) fn bytes(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    syntax::bytes(&mut out, value);
    out
}

pub(super) fn text(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    syntax::text(&mut out, value);
    out
}

/// An array of what is CBOR already.
pub(super) fn array(items: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    syntax::head(&mut out, syntax::ARRAY, items.len() as u64);
    for item in items {
        out.extend(*item);
    }
    out
}
