//! Time per value: whole columns through Sealflow, against `aes-gcm`, `ring` and `aws-lc-rs` called once per
//! value with a fresh nonce, as their users call them.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use sealflow::seal::{ColumnContext, OpeningKey, PlainColumn, SealedValue, SealingKey, UsageLimits};
use sealflow::secret::SecretBytes;
use serde_json::json;

use crate::Error;
use crate::measure::{Contender, Spread, interleaved, ratios, report};

const VALUES: usize = 8_192;
const SIZES: [usize; 5] = [16, 32, 64, 128, 1_024];
/// As long as the AAD of a label like `payment.cards[*].number`.
const AAD: [u8; 80] = [7; 80];
const NO_LIMIT: UsageLimits = UsageLimits {
    batches: u64::MAX,
    values: u64::MAX,
    bytes: u64::MAX,
};

pub(crate) fn run() -> Result<(), Error> {
    println!("CPU ns per value, {VALUES} values a column; ratio = peer / sealflow, median (min to max) of pairs");
    for size in SIZES {
        seal(size)?;
    }
    for size in SIZES {
        open(size)?;
    }
    Ok(())
}

fn next_nonce(counter: &mut u128) -> [u8; 12] {
    *counter += 1;
    let bytes = counter.to_be_bytes();
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&bytes[4..]);
    nonce
}

fn seal(size: usize) -> Result<(), Error> {
    let secret = SecretBytes::new(vec![1; 32]);
    let key = SealingKey::from_generated(&secret, NO_LIMIT)?;
    let values = vec![vec![6; size]; VALUES];
    let mut plain = PlainColumn::with_capacity(VALUES, VALUES * size);
    for value in &values {
        plain.push(value)?;
    }
    let context = ColumnContext {
        dataset: "payments",
        label: "payment.cards[*].number",
        column: 3,
        rows: None,
    };
    let raw = [1; 32];
    let aes_gcm = Aes256Gcm::new(&raw.into());
    let ring_key =
        ring::aead::LessSafeKey::new(ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &raw).map_err(|_| "ring")?);
    let lc_key = aws_lc_rs::aead::LessSafeKey::new(
        aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, &raw).map_err(|_| "aws-lc-rs")?,
    );
    let (mut a, mut b, mut c) = (0, 0, 0);
    let mut contenders: Vec<Contender<'_>> = vec![
        (
            "sealflow",
            Box::new(|| drop(std::hint::black_box(key.seal(&context, plain.view())))),
        ),
        (
            "aes-gcm",
            Box::new(|| {
                for value in &values {
                    let mut out = Vec::with_capacity(size + 28);
                    let nonce = next_nonce(&mut a);
                    out.extend_from_slice(&nonce);
                    out.extend_from_slice(value);
                    if let Ok(tag) = aes_gcm.encrypt_inout_detached(&nonce.into(), &AAD, (&mut out[12..]).into()) {
                        out.extend_from_slice(&tag);
                    }
                    std::hint::black_box(out);
                }
            }),
        ),
        (
            "ring",
            Box::new(|| {
                for value in &values {
                    let mut out = Vec::with_capacity(size + 28);
                    let nonce = next_nonce(&mut b);
                    out.extend_from_slice(&nonce);
                    out.extend_from_slice(value);
                    let sealed = ring_key.seal_in_place_separate_tag(
                        ring::aead::Nonce::assume_unique_for_key(nonce),
                        ring::aead::Aad::from(&AAD),
                        &mut out[12..],
                    );
                    if let Ok(tag) = sealed {
                        out.extend_from_slice(tag.as_ref());
                    }
                    std::hint::black_box(out);
                }
            }),
        ),
        (
            "aws-lc-rs",
            Box::new(|| {
                for value in &values {
                    let mut out = Vec::with_capacity(size + 28);
                    let nonce = next_nonce(&mut c);
                    out.extend_from_slice(&nonce);
                    out.extend_from_slice(value);
                    let sealed = lc_key.seal_in_place_separate_tag(
                        aws_lc_rs::aead::Nonce::assume_unique_for_key(nonce),
                        aws_lc_rs::aead::Aad::from(&AAD),
                        &mut out[12..],
                    );
                    if let Ok(tag) = sealed {
                        out.extend_from_slice(tag.as_ref());
                    }
                    std::hint::black_box(out);
                }
            }),
        ),
    ];
    let times = interleaved(VALUES, &mut contenders);
    show("seal", size, &times)
}

fn open(size: usize) -> Result<(), Error> {
    let secret = SecretBytes::new(vec![1; 32]);
    let sealing = SealingKey::from_generated(&secret, NO_LIMIT)?;
    let opening = OpeningKey::from_unwrapped(&secret, sealing.id())?;
    let mut plain = PlainColumn::with_capacity(VALUES, VALUES * size);
    for _ in 0..VALUES {
        plain.push(&vec![6; size])?;
    }
    let context = ColumnContext {
        dataset: "payments",
        label: "payment.cards[*].number",
        column: 3,
        rows: None,
    };
    let sealed = sealing.seal(&context, plain.view())?;
    let raw = [1; 32];
    let aes_gcm = Aes256Gcm::new(&raw.into());
    let ring_key =
        ring::aead::LessSafeKey::new(ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &raw).map_err(|_| "ring")?);
    let lc_key = aws_lc_rs::aead::LessSafeKey::new(
        aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, &raw).map_err(|_| "aws-lc-rs")?,
    );
    let mut whole = vec![6; size];
    let tag = aes_gcm
        .encrypt_inout_detached(&[9; 12].into(), &AAD, whole.as_mut_slice().into())
        .map_err(|_| "aes-gcm")?;
    let body = whole.clone();
    whole.extend_from_slice(&tag);
    let mut contenders: Vec<Contender<'_>> = vec![
        (
            "sealflow",
            Box::new(|| {
                let mut opener = opening.opener("payments", "payment.cards[*].number");
                let mut out = Vec::with_capacity(VALUES * size);
                for value in sealed.view().iter().flatten() {
                    if let Ok(SealedValue::Randomised {
                        nonce, ciphertext, tag, ..
                    }) = SealedValue::parse(value)
                    {
                        let _ = std::hint::black_box(opener.open(nonce, ciphertext, tag, None, &mut out));
                    }
                }
                std::hint::black_box(out);
            }),
        ),
        (
            "aes-gcm",
            Box::new(|| {
                for _ in 0..VALUES {
                    let mut out = body.clone();
                    let _ = std::hint::black_box(aes_gcm.decrypt_inout_detached(
                        &[9; 12].into(),
                        &AAD,
                        out.as_mut_slice().into(),
                        &tag,
                    ));
                }
            }),
        ),
        (
            "ring",
            Box::new(|| {
                for _ in 0..VALUES {
                    let mut out = whole.clone();
                    let nonce = ring::aead::Nonce::assume_unique_for_key([9; 12]);
                    let _ = std::hint::black_box(ring_key.open_in_place(nonce, ring::aead::Aad::from(&AAD), &mut out));
                }
            }),
        ),
        (
            "aws-lc-rs",
            Box::new(|| {
                for _ in 0..VALUES {
                    let mut out = whole.clone();
                    let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key([9; 12]);
                    let _ =
                        std::hint::black_box(lc_key.open_in_place(nonce, aws_lc_rs::aead::Aad::from(&AAD), &mut out));
                }
            }),
        ),
    ];
    let times = interleaved(VALUES, &mut contenders);
    show("open", size, &times)
}

fn show(what: &str, size: usize, times: &[(&'static str, Vec<f64>)]) -> Result<(), Error> {
    let Some((_, ours)) = times.first() else {
        return Ok(());
    };
    let mut line = json!({ "name": "values", "what": what, "plaintext_bytes": size, "values": VALUES });
    let mut text = format!("{what} {size:>5} B:");
    for (name, theirs) in times {
        let spread = Spread::of(theirs.clone());
        let ratio = ratios(theirs, ours);
        line[*name] =
            json!({ "cpu_ns_per_value": spread.median, "ratio_to_sealflow": [ratio.min, ratio.median, ratio.max] });
        text += &format!("  {name} {:.0} ns", spread.median);
        if *name != "sealflow" {
            text += &format!(" = {:.2}x ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max);
        }
    }
    println!("{text}");
    report(&line)?;
    Ok(())
}
