//! What an attestation document says, as far as the conditions of a key policy look at it.

use std::collections::BTreeMap;

/// The registers (PCRs) of an attestation document that was verified, for `kms:RecipientAttestation:ImageSha384` and
/// `kms:RecipientAttestation:PCR<n>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Lower-case hex digits, by number.
    registers: BTreeMap<u8, String>,
}

impl Evidence {
    /// From numbers and bytes. A register of zeros says nothing: nobody measured into it, or the enclave runs in debug mode,
    /// where its host can read it. So a policy that names zeros as a measurement lets nobody in.
    #[must_use]
    pub fn of_registers<'a>(registers: impl IntoIterator<Item = (u8, &'a [u8])>) -> Self {
        let mut evidence = Self::default();
        for (number, bytes) in registers {
            if bytes.iter().any(|byte| *byte != 0) {
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                evidence.registers.insert(number, hex);
            }
        }
        evidence
    }

    /// Whether the document says which image runs: PCR0.
    pub(crate) fn names_an_image(&self) -> bool {
        self.registers.contains_key(&0)
    }

    /// The register with that number, in lower-case hex digits.
    pub(super) fn register(&self, number: u8) -> Option<&str> {
        self.registers.get(&number).map(String::as_str)
    }
}
