//! A reader of ASN.1 in DER (ITU-T X.690), and of the indefinite lengths of BER where the caller allows them. It knows tags and
//! lengths, not what they mean; how deep it goes is written in the code that calls it, never in the bytes.

/// SEQUENCE.
pub(crate) const SEQUENCE: u8 = 0x30;
/// OCTET STRING, primitive.
pub(crate) const OCTET_STRING: u8 = 0x04;

/// Reads elements one after the other. `None` anywhere means: not what was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    indefinite: bool,
}

/// The length octets of an element.
enum Length {
    Definite(usize),
    Indefinite,
}

impl<'a> Reader<'a> {
    /// Reads DER.
    #[cfg(feature = "attestation")]
    pub(crate) fn der(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            indefinite: false,
        }
    }

    /// Reads DER in which constructed elements may have an indefinite length.
    #[cfg(feature = "cms")]
    pub(crate) fn indefinite(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            indefinite: true,
        }
    }

    /// Whether everything was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The tag of the next element.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Takes exactly these bytes.
    #[cfg(feature = "cms")]
    pub(crate) fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(bytes)?;
        Some(())
    }

    /// Takes an element with a definite length, and gives its contents.
    pub(crate) fn element(&mut self, tag: u8) -> Option<&'a [u8]> {
        match self.header(tag)? {
            Length::Definite(length) => self.take(length),
            Length::Indefinite => None,
        }
    }

    /// Takes a constructed element whose contents `read` takes to the end.
    pub(crate) fn constructed<T>(&mut self, tag: u8, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        match self.header(tag)? {
            Length::Definite(length) => {
                let mut contents = Self {
                    rest: self.take(length)?,
                    indefinite: self.indefinite,
                };
                let value = read(&mut contents)?;
                contents.is_empty().then_some(value)
            }
            Length::Indefinite => {
                let value = read(self)?;
                // End-of-contents octets, X.690 section 8.1.5.
                (self.take(2)? == [0, 0]).then_some(value)
            }
        }
    }

    fn header(&mut self, tag: u8) -> Option<Length> {
        if self.byte()? != tag {
            return None;
        }
        match self.byte()? {
            short @ 0..=0x7f => Some(Length::Definite(usize::from(short))),
            0x80 if self.indefinite => Some(Length::Indefinite),
            0x81 => {
                let length = usize::from(self.byte()?);
                (length >= 0x80).then_some(Length::Definite(length))
            }
            0x82 => {
                let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
                (length >= 0x100).then_some(Length::Definite(length))
            }
            // Longer than anything that is read here.
            _ => None,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}
