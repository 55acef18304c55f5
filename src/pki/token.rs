//! Join tokens: `ID.SECRET.FINGERPRINT`. The new node pins the authority by the fingerprint before it sends the secret;
//! the cluster keeps only a hash of the secret.

use std::{fmt, str::FromStr, time::Duration};

use rand::RngExt;
use sha2::{Digest, Sha256};

use super::PkiError;
use crate::config::units::format_duration;

/// How long a token may be good for, at least and at most.
pub const LIFETIME: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(30 * 86_400));

/// A lifetime that a token may have.
///
/// # Errors
/// When it is not within `LIFETIME`.
pub fn checked_lifetime(asked: Duration) -> Result<Duration, String> {
    let (least, most) = LIFETIME;
    match (least..=most).contains(&asked) {
        true => Ok(asked),
        false => Err(format!(
            "a lifetime of {} is not within {} to {}",
            format_duration(asked),
            format_duration(least),
            format_duration(most)
        )),
    }
}

/// A token as the operator carries it from a member to the new node.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Public part, 16 hexadecimal digits.
    pub id: String,
    /// Secret part, 32 hexadecimal digits.
    pub secret: String,
    /// SHA-256 of the authority's certificate, 64 hexadecimal digits.
    pub ca_fingerprint: String,
}

impl Token {
    /// Draws a token for the authority with this fingerprint.
    pub fn draw(ca_fingerprint: String) -> Self {
        let mut rng = rand::rng();
        Self {
            id: format!("{:016x}", rng.random::<u64>()),
            secret: format!("{:032x}", rng.random::<u128>()),
            ca_fingerprint,
        }
    }

    pub fn secret_hash(&self) -> String {
        hash_secret(&self.secret)
    }
}

/// SHA-256 of a secret, in hexadecimal. A plain hash suffices: the secret has 128 bits of randomness.
pub fn hash_secret(secret: &str) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(secret.as_bytes()))
}

impl FromStr for Token {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, fingerprint] = parts.as_slice() else {
            return Err(PkiError::Token(
                "expected three parts joined by dots, as `pontoon cluster token create` prints",
            ));
        };
        let hex = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if !hex(id, 16) || !hex(secret, 32) || !hex(fingerprint, 64) {
            return Err(PkiError::Token(
                "a part is cut short or holds a character that is not hexadecimal; copy it again",
            ));
        }
        Ok(Self {
            id: id.to_ascii_lowercase(),
            secret: secret.to_ascii_lowercase(),
            ca_fingerprint: fingerprint.to_ascii_lowercase(),
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.ca_fingerprint)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.***)", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_bad_ones_are_refused() {
        let token = Token::draw("ab".repeat(32));
        assert_eq!(token.to_string().parse::<Token>().ok(), Some(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        for bad in ["", "a.b.c", &token.to_string()[1..], &format!("{token}.x")] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
