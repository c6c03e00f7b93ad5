//! The token with which a machine asks to become a node, in upstream's bootstrap form: `abcdef.0123456789abcdef`.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use sha2::{Digest, Sha256};

const ID: usize = 6;
const SECRET: usize = 16;
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A join token: a public id and a secret.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: String,
}

/// The text does not have a join token's form.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a join token has the form abcdef.0123456789abcdef")]
pub struct NotAToken;

impl JoinToken {
    pub(super) fn random() -> Self {
        let mut rng = rand::rng();
        let mut text = |length| {
            (0..length)
                .map(|_| char::from(ALPHABET[rng.random_range(..ALPHABET.len())]))
                .collect()
        };
        Self {
            id: text(ID),
            secret: text(SECRET),
        }
    }

    /// The part that may be shown: it names the user `system:bootstrap:ID`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who shows it.
    pub(super) fn user_name(&self) -> String {
        format!("system:bootstrap:{}", self.id)
    }

    /// The whole token, for the file that only its owner reads.
    pub(super) fn reveal(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Whether `presented` is this token. The time it takes tells nothing about the secret: digests are compared.
    pub(super) fn is(&self, presented: &str) -> bool {
        Sha256::digest(presented) == Sha256::digest(self.reveal())
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (id, secret) = text.split_once('.').ok_or(NotAToken)?;
        let well_formed = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| ALPHABET.contains(&b))
        };
        if !well_formed(id, ID) || !well_formed(secret, SECRET) {
            return Err(NotAToken);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.…)", self.id)
    }
}
