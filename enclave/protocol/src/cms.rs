//! Keys released to one recipient: the CMS (RFC 5652) in which AWS KMS answers a `Recipient`, made and opened.
//!
//! It is `EnvelopedData` for one recipient, RSAES-OAEP with SHA-256 (RFC 8017) around an AES-256-CBC key (RFC 3565), in BER with
//! indefinite lengths. Exactly the shape that AWS sends is taken, and nothing else of CMS; `docs/format.md` has it in full.
//!
//! **The content is not authenticated.** Whoever carries it may change it. A caller checks the length of what comes out exactly,
//! and uses it only for what proves itself (a data key that recomputes its id, a private key of the right public key), over a
//! connection to KMS that ends in the same program.

use aws_lc_rs::cipher::{
    AES_256, AES_256_KEY_LEN, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use subtle::{Choice, ConstantTimeEq as _, ConstantTimeGreater as _};
use zeroize::Zeroizing;

use crate::asn1::{OCTET_STRING, Reader, SEQUENCE};

/// The longest message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The longest plaintext, in bytes. KMS releases 4,096 at most, and a private key of 4,096 bits has some 2,400.
pub const MAX_PLAINTEXT_BYTES: usize = 8 * 1024;

const BLOCK: usize = 16;
/// How long the pieces are into which content is cut.
const PIECE: usize = 1000;

const SET: u8 = 0x31;
/// `[0]`: constructed, and primitive.
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_0_PRIMITIVE: u8 = 0x80;
/// SHA-256 of the recipient's `SubjectPublicKeyInfo`.
const SUBJECT_KEY_IDENTIFIER_BYTES: usize = 32;

/// INTEGER 2: the version of `EnvelopedData`, and of a recipient that is named by its key.
const VERSION_2: &[u8] = &[0x02, 0x01, 0x02];
/// OBJECT IDENTIFIER 1.2.840.113549.1.7.3, `id-envelopedData`.
const ENVELOPED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03];
/// OBJECT IDENTIFIER 1.2.840.113549.1.7.1, `id-data`.
const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01];
/// OBJECT IDENTIFIER 2.16.840.1.101.3.4.1.42, `aes256-CBC`.
const AES_256_CBC: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
/// AlgorithmIdentifier of RSAES-OAEP with SHA-256 and MGF1 of SHA-256, label empty (RFC 4055, section 4.1).
const OAEP_SHA256: &[u8] = &[
    0x30, 0x3c, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07, 0x30, 0x2f, 0xa0, 0x0f, 0x30, 0x0d,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09,
    0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03,
    0x04, 0x02, 0x01, 0x05, 0x00,
];

/// The same without the NULL parameters of SHA-256: RFC 4055, section 2.1, wants both taken. OpenSSL writes this.
const OAEP_SHA256_ABSENT: &[u8] = &[
    0x30, 0x38, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07, 0x30, 0x2b, 0xa0, 0x0d, 0x30, 0x0b,
    0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0xa1, 0x1a, 0x30, 0x18, 0x06, 0x09, 0x2a, 0x86,
    0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02,
    0x01,
];

/// Why there is no message, or why one does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmsError {
    /// It does not open. It does not say what is wrong.
    #[error("what was released does not open")]
    DoesNotOpen,
    /// A recipient that cannot be sealed to.
    #[error("the recipient's key is no RSA key of 2,048 to 8,192 bits in SubjectPublicKeyInfo")]
    Recipient,
    /// Over [`MAX_PLAINTEXT_BYTES`].
    #[error("at most {MAX_PLAINTEXT_BYTES} bytes are released at once")]
    TooLong,
    /// The machine has no random numbers, or its cryptography failed.
    #[error("nothing can be sealed on this machine now: its random numbers or its cryptography failed")]
    Unavailable,
}

/// Seals a plaintext to a recipient (`SubjectPublicKeyInfo`, DER), as AWS KMS does.
///
/// # Errors
/// [`CmsError::Recipient`], [`CmsError::TooLong`], [`CmsError::Unavailable`]
pub fn seal(recipient_spki: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CmsError> {
    if plaintext.len() > MAX_PLAINTEXT_BYTES {
        return Err(CmsError::TooLong);
    }
    let recipient = PublicEncryptingKey::from_der(recipient_spki).map_err(|_| CmsError::Recipient)?;
    let recipient = OaepPublicEncryptingKey::new(recipient).map_err(|_| CmsError::Recipient)?;

    let mut key = Zeroizing::new([0; AES_256_KEY_LEN]);
    let mut iv = [0; BLOCK];
    rand::fill(key.as_mut())
        .and_then(|()| rand::fill(&mut iv))
        .map_err(|_| CmsError::Unavailable)?;
    let mut wrapped = vec![0; recipient.ciphertext_size()];
    recipient
        .encrypt(&OAEP_SHA256_MGF1SHA256, key.as_ref(), &mut wrapped, None)
        .map_err(|_| CmsError::Unavailable)?;
    let content = encrypt(key.as_ref(), &iv, plaintext).map_err(|_| CmsError::Unavailable)?;
    let identifier = digest(&SHA256, recipient_spki);
    Ok(message(identifier.as_ref(), &wrapped, &iv, &content))
}

/// Opens a message. `unwrap` is the private RSA operation, RSAES-OAEP with SHA-256 and MGF1 of SHA-256: `None` if it fails.
///
/// # Errors
/// [`CmsError::DoesNotOpen`], whatever is wrong.
pub fn open(
    ber: &[u8],
    unwrap: impl FnOnce(&[u8]) -> Option<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>, CmsError> {
    let message = Message::parse(ber).ok_or(CmsError::DoesNotOpen)?;
    let key = unwrap(message.wrapped).ok_or(CmsError::DoesNotOpen)?;
    decrypt(&key, message.iv, message.content).ok_or(CmsError::DoesNotOpen)
}

/// The parts of a message that vary.
struct Message<'a> {
    wrapped: &'a [u8],
    iv: [u8; BLOCK],
    /// Ciphertext, put together.
    content: Vec<u8>,
}

impl<'a> Message<'a> {
    /// `ContentInfo`, RFC 5652 section 3.
    fn parse(ber: &'a [u8]) -> Option<Self> {
        if ber.len() > MAX_MESSAGE_BYTES {
            return None;
        }
        let mut reader = Reader::indefinite(ber);
        let message = reader.constructed(SEQUENCE, |info| {
            info.expect(ENVELOPED_DATA)?;
            info.constructed(CONTEXT_0, |explicit| {
                explicit.constructed(SEQUENCE, Self::enveloped_data)
            })
        })?;
        reader.is_empty().then_some(message)
    }

    /// `EnvelopedData`, RFC 5652 section 6.1.
    fn enveloped_data(reader: &mut Reader<'a>) -> Option<Self> {
        reader.expect(VERSION_2)?;
        let wrapped = reader.constructed(SET, |recipients| recipients.constructed(SEQUENCE, key_trans_recipient))?;
        let (iv, content) = reader.constructed(SEQUENCE, encrypted_content)?;
        Some(Self { wrapped, iv, content })
    }
}

/// `KeyTransRecipientInfo`, RFC 5652 section 6.2.1. Whose key it is turns out when it opens.
fn key_trans_recipient<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    reader.expect(VERSION_2)?;
    let identifier = reader.element(CONTEXT_0_PRIMITIVE)?;
    if identifier.len() != SUBJECT_KEY_IDENTIFIER_BYTES {
        return None;
    }
    reader
        .expect(OAEP_SHA256)
        .or_else(|| reader.expect(OAEP_SHA256_ABSENT))?;
    reader.element(OCTET_STRING)
}

/// `EncryptedContentInfo`, RFC 5652 section 6.1: the IV, and the content in one piece or several.
fn encrypted_content(reader: &mut Reader<'_>) -> Option<([u8; BLOCK], Vec<u8>)> {
    reader.expect(DATA)?;
    let iv = reader.constructed(SEQUENCE, |algorithm| {
        algorithm.expect(AES_256_CBC)?;
        algorithm.element(OCTET_STRING)?.try_into().ok()
    })?;
    if reader.peek() == Some(CONTEXT_0_PRIMITIVE) {
        return Some((iv, reader.element(CONTEXT_0_PRIMITIVE)?.to_vec()));
    }
    let content = reader.constructed(CONTEXT_0, |pieces| {
        // Bounded by the message, of which this is a part.
        let mut content = Vec::new();
        while pieces.peek() == Some(OCTET_STRING) {
            content.extend(pieces.element(OCTET_STRING)?);
        }
        Some(content)
    })?;
    Some((iv, content))
}

/// AES-256-CBC with the padding of RFC 5652, section 6.3.
fn encrypt(key: &[u8], iv: &[u8; BLOCK], plaintext: &[u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
    let padding = BLOCK - plaintext.len() % BLOCK;
    let padded = plaintext.len() + padding;
    // Allocated once, so that no plaintext stays behind in a smaller buffer.
    let mut content = Vec::with_capacity(padded);
    content.extend(plaintext);
    // A block has 16 bytes.
    content.resize(padded, padding as u8);
    let cipher = EncryptingKey::cbc(UnboundCipherKey::new(&AES_256, key)?)?;
    cipher.less_safe_encrypt(&mut content, EncryptionContext::Iv128(FixedLength::from(iv)))?;
    Ok(content)
}

/// Undoes [`encrypt`]. The padding is looked at in constant time; how long it was shows in the length of the answer.
fn decrypt(key: &[u8], iv: [u8; BLOCK], content: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(content);
    let cipher = DecryptingKey::cbc(UnboundCipherKey::new(&AES_256, key).ok()?).ok()?;
    cipher
        .decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(iv)))
        .ok()?;
    let last: &[u8; BLOCK] = text.last_chunk()?;
    let padding = padding(last);
    let length = text.len() - usize::from(padding?);
    text.truncate(length);
    Some(text)
}

/// How many bytes of a last block are padding. Which byte is wrong makes no difference in time.
fn padding(block: &[u8; BLOCK]) -> Option<u8> {
    let count = block[BLOCK - 1];
    let mut right = !count.ct_eq(&0) & !count.ct_gt(&(BLOCK as u8));
    for (place, byte) in block.iter().rev().enumerate() {
        let is_padding: Choice = count.ct_gt(&(place as u8));
        right &= !is_padding | byte.ct_eq(&count);
    }
    bool::from(right).then_some(count)
}

/// Writes a message the way AWS KMS does.
fn message(identifier: &[u8], wrapped: &[u8], iv: &[u8], content: &[u8]) -> Vec<u8> {
    let mut recipient = VERSION_2.to_vec();
    element(&mut recipient, CONTEXT_0_PRIMITIVE, identifier);
    recipient.extend(OAEP_SHA256);
    element(&mut recipient, OCTET_STRING, wrapped);
    let mut recipients = Vec::new();
    element(&mut recipients, SEQUENCE, &recipient);
    let mut algorithm = AES_256_CBC.to_vec();
    element(&mut algorithm, OCTET_STRING, iv);

    let mut out = Vec::with_capacity(content.len() + wrapped.len() + 256);
    begin(&mut out, SEQUENCE);
    out.extend(ENVELOPED_DATA);
    begin(&mut out, CONTEXT_0);
    begin(&mut out, SEQUENCE);
    out.extend(VERSION_2);
    element(&mut out, SET, &recipients);
    begin(&mut out, SEQUENCE);
    out.extend(DATA);
    element(&mut out, SEQUENCE, &algorithm);
    begin(&mut out, CONTEXT_0);
    for piece in content.chunks(PIECE) {
        element(&mut out, OCTET_STRING, piece);
    }
    // The ends of the five that were begun.
    out.extend([0; 10]);
    out
}

/// Begins an element of indefinite length.
fn begin(out: &mut Vec<u8>, tag: u8) {
    out.extend([tag, 0x80]);
}

/// Writes an element in DER. What is written here is far shorter than 64 KiB.
fn element(out: &mut Vec<u8>, tag: u8, contents: &[u8]) {
    out.push(tag);
    let octets = (contents.len() as u32).to_be_bytes();
    match contents.len() {
        0..0x80 => out.push(octets[3]),
        0x80..0x100 => out.extend([0x81, octets[3]]),
        _ => out.extend([0x82, octets[2], octets[3]]),
    }
    out.extend(contents);
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use proptest::prelude::*;

    use super::*;

    /// What KMS released once, and the key of its recipient, which its owner published for a test.
    const RELEASED: &[u8] = include_bytes!("../tests/data/kms-released.cms");
    const RECIPIENT: &[u8] = include_bytes!("../tests/data/kms-recipient.pkcs8");
    const DATA_KEY: &str = "3be82c440f06cb4d44c4c2ec3bf30d472407d3a9125aa4c1842b98f6bdd26e41";

    struct Key {
        private: OaepPrivateDecryptingKey,
        public: Vec<u8>,
    }

    impl Key {
        fn new(key: PrivateDecryptingKey) -> Self {
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            let public = public.as_ref().to_vec();
            Self {
                private: OaepPrivateDecryptingKey::new(key).unwrap(),
                public,
            }
        }

        fn unwrap(&self, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
            let mut out = vec![0; self.private.min_output_size()];
            let key = self
                .private
                .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None)
                .ok()?;
            Some(Zeroizing::new(key.to_vec()))
        }

        fn open(&self, ber: &[u8]) -> Result<Zeroizing<Vec<u8>>, CmsError> {
            open(ber, |wrapped| self.unwrap(wrapped))
        }
    }

    static KEY: LazyLock<Key> = LazyLock::new(|| Key::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()));

    /// A message around this content as it is, under a key of 32 times 7.
    fn around(content: &[u8]) -> Vec<u8> {
        message(&[1; 32], &[2; 256], &[3; 16], content)
    }

    fn sevens(_: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(vec![7; 32]))
    }

    fn replaced(message: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = message.windows(from.len()).position(|window| window == from).unwrap();
        [&message[..at], to, &message[at + from.len()..]].concat()
    }

    /// The SET of recipients of a message, whose length has two bytes.
    fn the_set(message: &[u8]) -> Vec<u8> {
        let at = message.windows(2).position(|window| window == [SET, 0x82]).unwrap();
        let length = usize::from(u16::from_be_bytes([message[at + 2], message[at + 3]]));
        message[at..at + 4 + length].to_vec()
    }

    #[test]
    fn what_kms_released_opens() {
        let key = Key::new(PrivateDecryptingKey::from_pkcs8(RECIPIENT).unwrap());
        assert_eq!(hex::encode(key.open(RELEASED).unwrap().as_slice()), DATA_KEY);
    }

    #[test]
    fn what_is_sealed_has_the_bytes_of_kms_wherever_they_do_not_vary() {
        let key = Key::new(PrivateDecryptingKey::from_pkcs8(RECIPIENT).unwrap());
        let sealed = seal(&key.public, &hex::decode(DATA_KEY).unwrap()).unwrap();
        assert_eq!(sealed.len(), RELEASED.len());
        // Wrapped key, IV and content are random; the key identifier is not.
        for place in (0..131).chain(387..415).chain(431..435).chain(483..493) {
            assert_eq!(sealed[place], RELEASED[place], "at {place}");
        }
    }

    #[test]
    fn only_the_recipient_opens() {
        let sealed = seal(&KEY.public, b"a data key").unwrap();
        assert_eq!(KEY.open(&sealed).unwrap().as_slice(), b"a data key");
        let other = Key::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap());
        assert_eq!(other.open(&sealed), Err(CmsError::DoesNotOpen));
    }

    #[test]
    fn every_length_comes_back_and_long_content_is_in_pieces() {
        for length in (0..=48).chain([999, 1000, 1001, 2400, MAX_PLAINTEXT_BYTES]) {
            let plaintext: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
            let sealed = seal(&KEY.public, &plaintext).unwrap();
            assert!(sealed.len() <= MAX_MESSAGE_BYTES);
            assert_eq!(*KEY.open(&sealed).unwrap(), plaintext, "{length}");
        }
        assert_eq!(seal(&KEY.public, &[0; MAX_PLAINTEXT_BYTES + 1]), Err(CmsError::TooLong));
        // Ciphertext of 1,008 bytes: a piece of 1,000, and one of 8.
        let sealed = seal(&KEY.public, &[0; 1000]).unwrap();
        let last = &sealed[sealed.len() - 20..];
        assert_eq!((&last[..2], &last[10..]), (&[OCTET_STRING, 8][..], &[0; 10][..]));
    }

    #[test]
    fn a_recipient_that_is_no_rsa_key_is_refused() {
        for wrong in [&[][..], &[0; 64], &KEY.public[1..], &KEY.public[..200]] {
            assert_eq!(seal(wrong, b"x"), Err(CmsError::Recipient));
        }
    }

    #[test]
    fn content_in_one_piece_with_definite_lengths_opens_too() {
        let indefinite = around(&encrypt(&[7; 32], &[3; 16], b"text").unwrap());
        let from = [
            &[CONTEXT_0, 0x80, OCTET_STRING, 16][..],
            &indefinite[indefinite.len() - 26..],
        ]
        .concat();
        let one = [&[CONTEXT_0_PRIMITIVE, 16][..], &from[4..20], &[0; 8]].concat();
        let message = replaced(&indefinite, &from, &one);
        assert_eq!(open(&message, sevens).unwrap().as_slice(), b"text");
    }

    #[test]
    fn a_changed_byte_never_gives_what_was_sealed() {
        let sealed = seal(&KEY.public, b"a data key of thirty-two bytes..").unwrap();
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            let opened = KEY.open(&changed);
            // The key identifier is a hint, and nothing depends on it.
            if (33..65).contains(&place) {
                continue;
            }
            // IV and content are not authenticated: another text may come out.
            let malleable = (415..431).contains(&place) || (435..483).contains(&place);
            match opened {
                Ok(text) => assert!(
                    malleable && text.as_slice() != b"a data key of thirty-two bytes..",
                    "at {place}"
                ),
                Err(error) => assert_eq!(error, CmsError::DoesNotOpen),
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_goes_on_does_not_open() {
        let sealed = seal(&KEY.public, &[5; 1500]).unwrap();
        for length in 0..sealed.len() {
            assert_eq!(KEY.open(&sealed[..length]), Err(CmsError::DoesNotOpen), "{length}");
        }
        let longer = [&sealed[..], &[0]].concat();
        assert_eq!(KEY.open(&longer), Err(CmsError::DoesNotOpen));
    }

    #[test]
    fn other_shapes_of_cms_are_refused_before_the_private_key_is_used() {
        let good = around(&encrypt(&[7; 32], &[3; 16], b"text").unwrap());
        assert!(open(&good, sevens).is_ok());
        // The message with another set of recipients, whose lengths are right.
        let with_set = |contents: &[u8]| {
            let mut set = Vec::new();
            element(&mut set, SET, contents);
            replaced(&good, &the_set(&good), &set)
        };
        let wrapped = [&[OCTET_STRING, 0x82, 1, 0], &[2; 256][..]].concat();
        let one_of = |identifier: &[u8], algorithm: &[u8]| {
            let mut one = Vec::new();
            element(
                &mut one,
                SEQUENCE,
                &[VERSION_2, identifier, algorithm, &wrapped].concat(),
            );
            one
        };
        let identifier = [&[CONTEXT_0_PRIMITIVE, 32], &[1; 32][..]].concat();
        let one = one_of(&identifier, OAEP_SHA256);
        let with_algorithm = |algorithm: &[u8]| with_set(&one_of(&identifier, algorithm));
        let with_identifier = |identifier: &[u8]| with_set(&one_of(identifier, OAEP_SHA256));
        assert_eq!(with_set(&one), good);
        assert!(open(&with_algorithm(OAEP_SHA256_ABSENT), sevens).is_ok());

        let oaep_of_sha1 = [
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07, 0x30, 0,
        ];
        let pkcs1 = [
            0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0,
        ];
        let aes_128_cbc = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02];
        let iv = |length: u8| {
            let mut algorithm = Vec::new();
            let iv = vec![3; usize::from(length)];
            element(
                &mut algorithm,
                SEQUENCE,
                &[AES_256_CBC, &[OCTET_STRING, length], &iv].concat(),
            );
            algorithm
        };
        let by_issuer = [&[SEQUENCE, 5, SEQUENCE, 0, 2, 1], &[1][..]].concat();
        let shapes = [
            ("no recipient", with_set(&[])),
            ("two recipients", with_set(&[&one[..], &one].concat())),
            ("a recipient by issuer and serial number", with_identifier(&by_issuer)),
            (
                "an identifier of 20 bytes",
                with_identifier(&[&[CONTEXT_0_PRIMITIVE, 20], &[1; 20][..]].concat()),
            ),
            (
                "a length that is not the shortest",
                with_identifier(&[&[0x80, 0x81, 32], &[1; 32][..]].concat()),
            ),
            (
                "a longer length that is not the shortest",
                with_identifier(&[&[0x80, 0x82, 0, 32], &[1; 32][..]].concat()),
            ),
            ("OAEP with SHA-1", with_algorithm(&oaep_of_sha1)),
            ("PKCS #1 version 1.5", with_algorithm(&pkcs1)),
            ("AES-128", replaced(&good, AES_256_CBC, &aes_128_cbc)),
            ("data instead of enveloped data", replaced(&good, ENVELOPED_DATA, DATA)),
            ("another type of content", replaced(&good, DATA, ENVELOPED_DATA)),
            ("version 0", replaced(&good, VERSION_2, &[2, 1, 0])),
            ("an IV of eight bytes", replaced(&good, &iv(16), &iv(8))),
            ("too long", around(&vec![0; MAX_MESSAGE_BYTES])),
        ];
        for (shape, message) in shapes {
            let opened = open(&message, |_| panic!("{shape}: the private key was used"));
            assert_eq!(opened, Err(CmsError::DoesNotOpen), "{shape}");
        }
    }

    #[test]
    fn content_that_is_empty_or_no_whole_blocks_does_not_open() {
        for content in [&[][..], &[0; 15], &[0; 17]] {
            assert_eq!(open(&around(content), sevens), Err(CmsError::DoesNotOpen));
        }
    }

    #[test]
    fn a_key_that_is_none_of_aes_256_opens_nothing() {
        let message = around(&encrypt(&[7; 32], &[3; 16], b"text").unwrap());
        for length in [0, 16, 24, 31, 33] {
            assert_eq!(
                open(&message, |_| Some(Zeroizing::new(vec![7; length]))),
                Err(CmsError::DoesNotOpen)
            );
        }
        assert_eq!(open(&message, |_| None), Err(CmsError::DoesNotOpen));
    }

    /// The same as [`padding`], the obvious way.
    fn padding_by_branches(block: &[u8; BLOCK]) -> Option<u8> {
        let count = block[15];
        let fits = (1..=16).contains(&count);
        (fits && block[16 - usize::from(count)..].iter().all(|byte| *byte == count)).then_some(count)
    }

    #[test]
    fn padding_is_right_or_wrong_by_every_byte_of_it() {
        for count in 0..=255_u8 {
            let mut block = [0xee; BLOCK];
            let filled = usize::from(count).min(16);
            block[16 - filled..].fill(count);
            block[15] = count;
            assert_eq!(padding(&block), (1..=16).contains(&count).then_some(count), "{count}");
            for place in 0..BLOCK {
                let mut changed = block;
                changed[place] ^= 0x40;
                assert_eq!(padding(&changed), padding_by_branches(&changed), "{count} at {place}");
            }
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_made_up_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = open(&bytes, sevens);
            let _ = open(&around(&bytes), sevens);
        }

        #[test]
        fn padding_agrees_with_the_obvious_way(block in any::<[u8; 16]>(), count in 0_u8..20, from in 0_usize..16) {
            let mut block = block;
            block[from..].fill(count);
            prop_assert_eq!(padding(&block), padding_by_branches(&block));
        }
    }

    /// Writes the seeds of the fuzz target `cms`. Run it when messages change.
    #[test]
    #[ignore = "writes files"]
    fn seeds_of_the_fuzz_target_are_written() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/cms");
        std::fs::create_dir_all(&folder).unwrap();
        let message = around(&encrypt(&[7; 32], &[3; 16], b"a data key of thirty-two bytes..").unwrap());
        assert!(open(&message, sevens).is_ok());
        std::fs::write(folder.join("opens"), message).unwrap();
        std::fs::write(folder.join("released"), RELEASED).unwrap();
    }
}
