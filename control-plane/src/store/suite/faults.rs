//! What the world does to a store: a disk that is full, an etcd that goes away, strangers at etcd's door.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::Value;

use super::etcd_server::EtcdServer;
use crate::store::cache::{Cache, Freshness};
use crate::store::embedded::Embedded;
use crate::store::etcd::{ConnectError, Etcd};
use crate::store::{Expect, Store, StoreError};

fn no_fields(_: &str, _: &Value) -> Vec<(&'static str, String)> {
    Vec::new()
}

/// A small disk of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None, with the reason printed, where it cannot be mounted; that is a failure under CI.
    fn mount() -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("kn-st-disk")
            .tempdir()
            .unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .output()
            .unwrap();
        if !mount.status.success() {
            let reason = String::from_utf8_lossy(&mount.stderr).into_owned();
            assert!(
                std::env::var_os("CI").is_none(),
                "cannot mount a tmpfs: {reason}"
            );
            println!("skipped: cannot mount a tmpfs: {reason}");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_space() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; 2 << 20]).unwrap();
    let store = Embedded::open(&disk.0.path().join("store.redb")).unwrap();
    let value = bytes::Bytes::from(vec![b'x'; 50_000]);
    let mut kept = Vec::new();
    let refused = loop {
        let key = format!("/registry/{}", kept.len());
        match store.put(&key, value.clone(), Expect::Absent).await {
            Ok(revision) => kept.push((key, revision)),
            Err(error) => break error,
        }
        assert!(kept.len() < 1_000, "the disk does not fill");
    };
    assert!(matches!(refused, StoreError::Failed(_)), "{refused}");
    assert_eq!(refused.to_string(), "the store failed: the disk is full");
    for (key, revision) in &kept {
        let entry = store.get(key).await.unwrap().0.unwrap();
        assert_eq!((entry.modified, entry.value), (*revision, value.clone()));
    }
    std::fs::remove_file(&filler).unwrap();
    let next = store
        .put("/registry/next", value, Expect::Absent)
        .await
        .unwrap();
    assert!(next > kept.last().unwrap().1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_goes_on_when_etcd_comes_back() {
    let Some(mut server) = EtcdServer::start() else {
        return;
    };
    let store = Arc::new(Etcd::connect(&server.config()).await.unwrap());
    let cache = Cache::start(store.clone(), no_fields).await.unwrap();
    let watch = cache.watch("/registry/", None).unwrap();
    let first = store
        .put("/registry/a", "{}".into(), Expect::Absent)
        .await
        .unwrap();
    cache.wait(first).await.unwrap();

    server.kill();
    assert!(cache.list("/registry/", Freshness::Latest).await.is_err());
    let old = cache.list("/registry/", Freshness::Any).await.unwrap();
    assert_eq!((old.objects.len(), old.revision), (1, first));
    server.run();

    let deadline = Instant::now() + Duration::from_secs(20);
    let second = loop {
        match store.put("/registry/b", "{}".into(), Expect::Absent).await {
            Ok(revision) => break revision,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    while cache.wait(second).await.is_err() {
        assert!(Instant::now() < deadline, "the cache does not catch up");
    }
    let seen: Vec<_> = futures::StreamExt::collect(futures::StreamExt::take(watch, 2)).await;
    let seen: Vec<_> = seen.iter().map(|change| change.revision()).collect();
    assert_eq!(seen, [first, second]);
}

/// `ca.pem`, and a certificate with its key for `name` under it, in `dir`.
fn certificates(dir: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    std::fs::write(
        dir.join("cert.pem"),
        params.signed_by(&key, &issuer).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn etcd_is_reached_over_mutual_tls_and_not_without() {
    let arguments = |dir: &Path| {
        certificates(dir);
        let file = |name| dir.join(name).display().to_string();
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", file("ca.pem")),
            format!("--cert-file={}", file("cert.pem")),
            format!("--key-file={}", file("key.pem")),
        ]
    };
    let Some(server) = EtcdServer::start_with("https", &arguments) else {
        return;
    };
    let mut config = server.config();
    let file = |name| Some(server.dir().join(name));
    config.ca_file = file("ca.pem");
    config.cert_file = file("cert.pem");
    assert!(matches!(
        Etcd::connect(&config).await,
        Err(ConnectError::HalfIdentity)
    ));
    config.key_file = file("key.pem");
    let store = Etcd::connect(&config).await.unwrap();
    store
        .put("/registry/a", "{}".into(), Expect::Absent)
        .await
        .unwrap();

    config.cert_file = None;
    config.key_file = None;
    assert!(matches!(
        Etcd::connect(&config).await,
        Err(ConnectError::Unreachable { .. })
    ));
}
