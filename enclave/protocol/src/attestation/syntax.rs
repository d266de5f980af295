//! The CBOR (RFC 8949) of attestation documents. It knows bounds and types, not what to believe.

use std::collections::BTreeMap;

use minicbor::Decoder;
use minicbor::data::Type;

use super::{AttestationError, Document, Tier};

/// The protected header: `{1: -35}`, ES384 and nothing else.
pub(super) const PROTECTED: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];
/// r and s of an ES384 signature.
const SIGNATURE_BYTES: usize = 96;
/// The longest certificate.
const MAX_CERTIFICATE_BYTES: usize = 1024;
/// The most certificates above the one that signs, the root among them. AWS has four, the path check allows six and the root.
pub(super) const MAX_BUNDLE: usize = 7;
/// Bounds of claims.
pub(super) const MAX_PUBLIC_KEY_BYTES: usize = 1024;
pub(super) const MAX_DATA_BYTES: usize = 512;
/// PCRs have indexes below this.
pub(super) const MAX_PCRS: u8 = 32;

/// The parts of a COSE_Sign1 whose headers were checked.
pub(super) struct Signed<'a> {
    pub(super) payload: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The payload: what the document says, and who signed it.
pub(super) struct Payload<'a> {
    module_id: &'a str,
    timestamp_ms: u64,
    pcrs: BTreeMap<u8, &'a [u8]>,
    /// The certificate whose key signed.
    pub(super) certificate: &'a [u8],
    /// Root first; never empty.
    pub(super) bundle: Vec<&'a [u8]>,
    public_key: Option<&'a [u8]>,
    user_data: Option<&'a [u8]>,
    nonce: Option<&'a [u8]>,
}

impl Payload<'_> {
    /// What it says.
    pub(super) fn document(self, tier: Tier) -> Document {
        Document {
            module_id: self.module_id.to_owned(),
            timestamp_ms: self.timestamp_ms,
            pcrs: self
                .pcrs
                .into_iter()
                .map(|(index, value)| (index, value.to_vec()))
                .collect(),
            public_key: self.public_key.map(<[u8]>::to_vec),
            user_data: self.user_data.map(<[u8]>::to_vec),
            nonce: self.nonce.map(<[u8]>::to_vec),
            tier,
        }
    }
}

/// Takes a COSE_Sign1 apart (RFC 9052, section 4.2): untagged, ES384, no other header, nothing behind it.
pub(super) fn signed(document: &[u8]) -> Result<Signed<'_>, AttestationError> {
    let mut decoder = Decoder::new(document);
    let wrong = |_| AttestationError::Syntax("it is no COSE_Sign1 without a tag");
    if decoder.array().map_err(wrong)? != Some(4) {
        return Err(AttestationError::Syntax("it is no array of four"));
    }
    if decoder.bytes().map_err(wrong)? != PROTECTED {
        return Err(AttestationError::Algorithm);
    }
    if decoder.map().map_err(wrong)? != Some(0) {
        return Err(AttestationError::Syntax("it has unprotected headers"));
    }
    let payload = decoder.bytes().map_err(wrong)?;
    let signature = decoder.bytes().map_err(wrong)?;
    if signature.len() != SIGNATURE_BYTES {
        return Err(AttestationError::Syntax("its signature has not 96 bytes"));
    }
    at_end(&decoder)?;
    Ok(Signed { payload, signature })
}

/// What is signed (RFC 9052, section 4.4): `["Signature1", protected, external_aad = h'', payload]`.
pub(super) fn to_be_signed(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 32);
    head(&mut out, ARRAY, 4);
    text(&mut out, "Signature1");
    bytes(&mut out, &PROTECTED);
    bytes(&mut out, &[]);
    bytes(&mut out, payload);
    out
}

/// Reads the payload: every field's type and bounds, none unknown, none twice, none missing, nothing behind it.
///
/// Maps and arrays of indefinite length are taken, since AWS's hypervisor writes them; `null` is taken for a claim that is not
/// there, for the same reason.
pub(super) fn payload(payload: &[u8]) -> Result<Payload<'_>, AttestationError> {
    let mut decoder = Decoder::new(payload);
    let mut fields = Fields::default();
    let mut left = decoder
        .map()
        .map_err(|_| AttestationError::Syntax("its payload is no map"))?;
    while more(&mut decoder, &mut left)? {
        let key = decoder
            .str()
            .map_err(|_| AttestationError::Syntax("a key of its payload is no text"))?;
        fields.read(key, &mut decoder)?;
    }
    at_end(&decoder)?;
    fields.complete()
}

/// The fields as far as they were read.
#[derive(Default)]
struct Fields<'a> {
    module_id: Option<&'a str>,
    digest: Option<()>,
    timestamp_ms: Option<u64>,
    pcrs: Option<BTreeMap<u8, &'a [u8]>>,
    certificate: Option<&'a [u8]>,
    bundle: Option<Vec<&'a [u8]>>,
    public_key: Option<Option<&'a [u8]>>,
    user_data: Option<Option<&'a [u8]>>,
    nonce: Option<Option<&'a [u8]>>,
}

impl<'a> Fields<'a> {
    fn read(&mut self, key: &str, decoder: &mut Decoder<'a>) -> Result<(), AttestationError> {
        match key {
            "module_id" => once(&mut self.module_id, module_id(decoder)?),
            "digest" => once(&mut self.digest, digest(decoder)?),
            "timestamp" => once(&mut self.timestamp_ms, timestamp(decoder)?),
            "pcrs" => once(&mut self.pcrs, pcrs(decoder)?),
            "certificate" => once(&mut self.certificate, certificate(decoder)?),
            "cabundle" => once(&mut self.bundle, bundle(decoder)?),
            "public_key" => once(&mut self.public_key, claim(decoder, 1, MAX_PUBLIC_KEY_BYTES)?),
            "user_data" => once(&mut self.user_data, claim(decoder, 0, MAX_DATA_BYTES)?),
            "nonce" => once(&mut self.nonce, claim(decoder, 0, MAX_DATA_BYTES)?),
            _ => Err(AttestationError::Syntax("it has a field that is not known")),
        }
    }

    fn complete(self) -> Result<Payload<'a>, AttestationError> {
        self.digest.ok_or(AttestationError::Syntax("`digest` is missing"))?;
        Ok(Payload {
            module_id: self
                .module_id
                .ok_or(AttestationError::Syntax("`module_id` is missing"))?,
            timestamp_ms: self
                .timestamp_ms
                .ok_or(AttestationError::Syntax("`timestamp` is missing"))?,
            pcrs: self.pcrs.ok_or(AttestationError::Syntax("`pcrs` is missing"))?,
            certificate: self
                .certificate
                .ok_or(AttestationError::Syntax("`certificate` is missing"))?,
            bundle: self.bundle.ok_or(AttestationError::Syntax("`cabundle` is missing"))?,
            public_key: self.public_key.flatten(),
            user_data: self.user_data.flatten(),
            nonce: self.nonce.flatten(),
        })
    }
}

fn once<T>(field: &mut Option<T>, value: T) -> Result<(), AttestationError> {
    if field.is_some() {
        return Err(AttestationError::Syntax("a field is there twice"));
    }
    *field = Some(value);
    Ok(())
}

fn module_id<'a>(decoder: &mut Decoder<'a>) -> Result<&'a str, AttestationError> {
    match decoder.str() {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(AttestationError::Syntax("`module_id` is no text, or empty")),
    }
}

fn digest(decoder: &mut Decoder<'_>) -> Result<(), AttestationError> {
    match decoder.str() {
        Ok("SHA384") => Ok(()),
        _ => Err(AttestationError::Syntax("`digest` is not SHA384")),
    }
}

fn timestamp(decoder: &mut Decoder<'_>) -> Result<u64, AttestationError> {
    match decoder.u64() {
        Ok(timestamp) if timestamp > 0 => Ok(timestamp),
        _ => Err(AttestationError::Syntax("`timestamp` is no integer over zero")),
    }
}

fn pcrs<'a>(decoder: &mut Decoder<'a>) -> Result<BTreeMap<u8, &'a [u8]>, AttestationError> {
    let mut pcrs = BTreeMap::new();
    let mut left = decoder
        .map()
        .map_err(|_| AttestationError::Syntax("`pcrs` is no map"))?;
    while more(decoder, &mut left)? {
        let index = match decoder.u8() {
            Ok(index) if index < MAX_PCRS => index,
            _ => return Err(AttestationError::Syntax("an index of `pcrs` is not 0 to 31")),
        };
        let value = match decoder.bytes() {
            Ok(value) if matches!(value.len(), 32 | 48 | 64) => value,
            _ => return Err(AttestationError::Syntax("a value of `pcrs` has not 32, 48 or 64 bytes")),
        };
        // So there are 32 at most.
        if pcrs.insert(index, value).is_some() {
            return Err(AttestationError::Syntax("an index of `pcrs` is there twice"));
        }
    }
    if pcrs.is_empty() {
        return Err(AttestationError::Syntax("`pcrs` is empty"));
    }
    Ok(pcrs)
}

fn certificate<'a>(decoder: &mut Decoder<'a>) -> Result<&'a [u8], AttestationError> {
    match decoder.bytes() {
        Ok(bytes) if (1..=MAX_CERTIFICATE_BYTES).contains(&bytes.len()) => Ok(bytes),
        _ => Err(AttestationError::Syntax("a certificate has not 1 to 1,024 bytes")),
    }
}

fn bundle<'a>(decoder: &mut Decoder<'a>) -> Result<Vec<&'a [u8]>, AttestationError> {
    let mut bundle = Vec::new();
    let mut left = decoder
        .array()
        .map_err(|_| AttestationError::Syntax("`cabundle` is no array"))?;
    while more(decoder, &mut left)? {
        if bundle.len() == MAX_BUNDLE {
            return Err(AttestationError::Syntax("`cabundle` has too many certificates"));
        }
        bundle.push(certificate(decoder)?);
    }
    if bundle.is_empty() {
        return Err(AttestationError::Syntax("`cabundle` is empty"));
    }
    Ok(bundle)
}

fn claim<'a>(decoder: &mut Decoder<'a>, least: usize, most: usize) -> Result<Option<&'a [u8]>, AttestationError> {
    if matches!(decoder.datatype(), Ok(Type::Null)) {
        return decoder
            .null()
            .map(|()| None)
            .map_err(|_| AttestationError::Syntax("a claim is cut off"));
    }
    match decoder.bytes() {
        Ok(bytes) if (least..=most).contains(&bytes.len()) => Ok(Some(bytes)),
        _ => Err(AttestationError::Syntax(
            "`public_key`, `user_data` or `nonce` is no byte string, or too long",
        )),
    }
}

/// Whether a map or array goes on. `left` counts down, or is `None` until the break.
fn more(decoder: &mut Decoder<'_>, left: &mut Option<u64>) -> Result<bool, AttestationError> {
    match left {
        Some(0) => Ok(false),
        Some(left) => {
            *left -= 1;
            Ok(true)
        }
        None => match decoder.datatype() {
            Ok(Type::Break) => {
                decoder.set_position(decoder.position() + 1);
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(_) => Err(AttestationError::Syntax("it is cut off")),
        },
    }
}

fn at_end(decoder: &Decoder<'_>) -> Result<(), AttestationError> {
    if decoder.position() != decoder.input().len() {
        return Err(AttestationError::Syntax("something follows it"));
    }
    Ok(())
}

/// Major types, as they stand in a head's first byte.
pub(super) const BYTES: u8 = 0x40;
pub(super) const TEXT: u8 = 0x60;
pub(super) const ARRAY: u8 = 0x80;
#[cfg(feature = "build")]
pub(super) const UNSIGNED: u8 = 0x00;
#[cfg(feature = "build")]
pub(super) const MAP: u8 = 0xa0;

/// Writes a head with the shortest argument (RFC 8949, section 4.2.1).
pub(super) fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let octets = argument.to_be_bytes();
    match argument {
        0..24 => out.push(major | octets[7]),
        24..0x100 => out.extend([major | 24, octets[7]]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend(&octets[6..]);
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend(&octets[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend(octets);
        }
    }
}

pub(super) fn text(out: &mut Vec<u8>, value: &str) {
    head(out, TEXT, value.len() as u64);
    out.extend(value.as_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    head(out, BYTES, value.len() as u64);
    out.extend(value);
}
