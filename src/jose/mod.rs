//! JOSE as used here: EdDSA JWS (RFC 7515, RFC 8037) and Ed25519 JWKs (RFC 7517, RFC 7638 thumbprints).
