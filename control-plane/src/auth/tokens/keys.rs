//! The keys of service accounts' tokens: `pki/sa.key` signs, and with it verify all `pki/sa-*.key` and `pki/sa-*.pub`.
//!
//! To rotate: rename `sa.key` to `sa-old.key` and restart, which makes a new one; when no token of the old one is in use any
//! more, remove it. Keys are PKCS #8 in PEM, of the curve P-256 (as those made here) or RSA.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::auth::files::{self, Access};

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot keep the keys of service accounts' tokens in {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: {why}; a key of service accounts' tokens is PKCS #8 in PEM, of P-256 or RSA (openssl pkcs8 -topk8 -nocrypt makes one of others)"
    )]
    Unusable { path: PathBuf, why: String },
    #[error("cannot make a key: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the key of service accounts' tokens does not sign")]
    Sign,
}

enum Signer {
    P256(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// A public key.
struct Verifier {
    id: String,
    algorithm: &'static str,
    /// As ring takes it: the point, or PKCS #1.
    key: Vec<u8>,
    /// What the key is in a JSON Web Key Set, without its id and use.
    shown: Value,
}

/// One key that signs, and all that verify, that one first.
pub struct Keys {
    signer: Signer,
    verifiers: Vec<Verifier>,
    random: SystemRandom,
}

impl Keys {
    /// Adopts the keys in `dir`; makes the one that signs if there is none.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        let path = dir.join("sa.key");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| KeysError::Io { path, source }
        };
        let pem = match files::read(&path).map_err(at(&path))? {
            Some(pem) => pem,
            None => {
                let pem = KeyPair::generate()?.serialize_pem();
                files::write(&path, &pem, Access::Owner).map_err(at(&path))?;
                pem
            }
        };
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |why| KeysError::Unusable { path, why }
        };
        let (signer, first) = private(&pem).map_err(unusable(&path))?;
        let mut verifiers = vec![first];
        let mut others: Vec<PathBuf> = fs::read_dir(dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(at(dir))?;
        others.sort();
        for path in others {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if !name.starts_with("sa-") || !(name.ends_with(".key") || name.ends_with(".pub")) {
                continue;
            }
            let pem = files::read(&path).map_err(at(&path))?.unwrap_or_default();
            let verifier = if name.ends_with(".key") {
                private(&pem).map(|(_, verifier)| verifier)
            } else {
                public(&pem)
            };
            verifiers.push(verifier.map_err(unusable(&path))?);
        }
        let mut seen = Vec::new();
        verifiers.retain(|key| {
            !seen.contains(&key.id) && {
                seen.push(key.id.clone());
                true
            }
        });
        Ok(Self {
            signer,
            verifiers,
            random: SystemRandom::new(),
        })
    }

    /// Of the key that signs.
    pub fn id(&self) -> &str {
        &self.verifiers[0].id
    }

    /// Whether the key of this id is among those that verify.
    pub fn verifies(&self, id: &str) -> bool {
        self.verifiers.iter().any(|key| key.id == id)
    }

    pub(super) fn algorithm(&self) -> &'static str {
        self.verifiers[0].algorithm
    }

    /// Those of all keys, each once.
    pub(super) fn algorithms(&self) -> Vec<&'static str> {
        let mut all: Vec<_> = self.verifiers.iter().map(|key| key.algorithm).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeysError> {
        match &self.signer {
            Signer::P256(key) => {
                let signature = key
                    .sign(&self.random, message)
                    .map_err(|_| KeysError::Sign)?;
                Ok(signature.as_ref().to_vec())
            }
            Signer::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                    .map_err(|_| KeysError::Sign)?;
                Ok(signature)
            }
        }
    }

    /// Whether one of the keys signed the message. `id` says which, if it says anything.
    pub(super) fn verify(
        &self,
        algorithm: &str,
        id: &str,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let fits = |key: &&Verifier| key.algorithm == algorithm && (id.is_empty() || key.id == id);
        self.verifiers
            .iter()
            .filter(fits)
            .any(|key| match key.algorithm {
                "ES256" => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.key)
                    .verify(message, signature)
                    .is_ok(),
                _ => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &key.key)
                    .verify(message, signature)
                    .is_ok(),
            })
    }

    /// A JSON Web Key Set.
    pub(super) fn set(&self) -> Value {
        let keys = self.verifiers.iter().map(|key| {
            let mut shown = json!({"use": "sig", "alg": key.algorithm, "kid": key.id});
            if let (Some(all), Some(own)) = (shown.as_object_mut(), key.shown.as_object()) {
                all.extend(own.clone());
            }
            shown
        });
        json!({"keys": keys.collect::<Vec<_>>()})
    }
}

fn private(pem: &str) -> Result<(Signer, Verifier), String> {
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    let pair = KeyPair::try_from(&der).map_err(|error| error.to_string())?;
    let verifier = verifier(&pair.subject_public_key_info())?;
    let der = der.secret_pkcs8_der();
    let signer = match verifier.algorithm {
        "ES256" => {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
                .map(|key| Signer::P256(Box::new(key)))
        }
        _ => RsaKeyPair::from_pkcs8(der).map(|key| Signer::Rsa(Box::new(key))),
    };
    Ok((signer.map_err(|error| error.to_string())?, verifier))
}

fn public(pem: &str) -> Result<Verifier, String> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| error.to_string())?;
    verifier(&der)
}

/// A key from its SubjectPublicKeyInfo. Its id is that which upstream would give it.
fn verifier(info: &[u8]) -> Result<Verifier, String> {
    let (_, read) = SubjectPublicKeyInfo::from_der(info).map_err(|error| error.to_string())?;
    let id = URL_SAFE_NO_PAD.encode(Sha256::digest(info));
    let key = read.subject_public_key.data.to_vec();
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match read.parsed().map_err(|error| error.to_string())? {
        PublicKey::EC(point) if point.key_size() == 256 && key.len() == 65 => Ok(Verifier {
            id,
            algorithm: "ES256",
            shown: json!({"kty": "EC", "crv": "P-256", "x": text(&key[1..33]), "y": text(&key[33..])}),
            key,
        }),
        PublicKey::RSA(rsa) => {
            let plain = |number: &[u8]| {
                let zeros = number.iter().take_while(|byte| **byte == 0).count();
                text(&number[zeros..])
            };
            Ok(Verifier {
                id,
                algorithm: "RS256",
                shown: json!({"kty": "RSA", "n": plain(rsa.modulus), "e": plain(rsa.exponent)}),
                key,
            })
        }
        _ => Err("it is of a kind that signs no tokens".to_owned()),
    }
}
