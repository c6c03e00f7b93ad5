//! The administrator's kubeconfig: one cluster, one user, one context, everything inline.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::certificate::CertifiedKeyPem;

const NAME: &str = "kernelet";

pub(super) struct Kubeconfig {
    /// `https://address:port`
    pub(super) server: String,
    pub(super) ca: String,
    pub(super) client: CertifiedKeyPem,
}

impl Kubeconfig {
    pub(super) fn to_yaml(&self) -> String {
        let b64 = |pem: &str| STANDARD.encode(pem);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: {NAME}\n  \
               cluster:\n    \
                 server: {}\n    \
                 certificate-authority-data: {}\n\
             users:\n\
             - name: admin\n  \
               user:\n    \
                 client-certificate-data: {}\n    \
                 client-key-data: {}\n\
             contexts:\n\
             - name: {NAME}\n  \
               context:\n    \
                 cluster: {NAME}\n    \
                 user: admin\n\
             current-context: {NAME}\n",
            self.server,
            b64(&self.ca),
            b64(&self.client.certificate),
            b64(&self.client.key),
        )
    }

    /// None if `text` is not of the form that [`Self::to_yaml`] writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_saphyr::from_str(text).ok()?;
        let field = |pointer| value.pointer(pointer).and_then(Value::as_str);
        let pem = |pointer| String::from_utf8(STANDARD.decode(field(pointer)?).ok()?).ok();
        Some(Self {
            server: field("/clusters/0/cluster/server")?.to_owned(),
            ca: pem("/clusters/0/cluster/certificate-authority-data")?,
            client: CertifiedKeyPem {
                certificate: pem("/users/0/user/client-certificate-data")?,
                key: pem("/users/0/user/client-key-data")?,
            },
        })
    }
}
