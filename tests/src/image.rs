//! An OCI image of one static program, as an archive that `containerd` and other tools import.
//! The layout is the OCI image specification's: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.

use std::io::Result;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Content by its SHA-256 digest.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Blob {
        let digest = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Blob { digest, bytes }
    }

    fn json(value: &Value) -> Blob {
        Blob::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len() })
    }
}

/// An image with one layer.
pub struct Image {
    index: Value,
    blobs: Vec<Blob>,
}

impl Image {
    /// An image called `name` whose entry point is `/program`.
    pub fn of_program(name: &str, program: &str, bytes: &[u8]) -> Result<Image> {
        let layer = Blob::new(tar_of(&[(program.to_owned(), 0o755, bytes)])?);
        let config = Blob::json(&json!({
            "architecture": go_architecture(),
            "os": "linux",
            "config": { "Entrypoint": [format!("/{program}")] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
        }));
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        }));
        let mut descriptor = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        descriptor["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        Ok(Image {
            index,
            blobs: vec![layer, config, manifest],
        })
    }

    /// The archive; the same image always gives the same bytes.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let index = self.index.to_string();
        let mut files: Vec<(String, u32, &[u8])> = vec![
            (
                "oci-layout".into(),
                0o644,
                br#"{"imageLayoutVersion":"1.0.0"}"#,
            ),
            ("index.json".into(), 0o644, index.as_bytes()),
        ];
        files.extend(self.blobs.iter().map(|blob| {
            (
                format!("blobs/sha256/{}", blob.digest),
                0o644,
                &blob.bytes[..],
            )
        }));
        tar_of(&files)
    }
}

fn tar_of(files: &[(String, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(*mode);
        header.set_cksum();
        builder.append_data(&mut header, path, *bytes)?;
    }
    builder.into_inner()
}

/// The machine's architecture as OCI images name it.
fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn every_descriptor_names_a_blob_of_that_size() {
        let image = Image::of_program("docker.io/library/x:v1", "x", b"program").unwrap();
        let files = unpack(&image.archive().unwrap());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let descriptor = &index["manifests"][0];
        assert_eq!(
            descriptor["annotations"]["io.containerd.image.name"],
            "docker.io/library/x:v1"
        );

        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap();
            let bytes = files[&format!("blobs/sha256/{digest}")].clone();
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let manifest: Value = serde_json::from_slice(&blob(descriptor)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );
        assert_eq!(unpack(&layer)["x"], b"program");
    }

    #[test]
    fn the_same_program_gives_the_same_archive() {
        let archive = || {
            Image::of_program("a", "x", b"program")
                .unwrap()
                .archive()
                .unwrap()
        };
        assert_eq!(archive(), archive());
    }
}
