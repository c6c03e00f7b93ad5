//! Who gets which certificate without a person.

use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use super::super::pki::PkiConfig;
use super::super::{MASTERS, NODE_BOOTSTRAPPERS, NODES};
use super::*;

fn csr(common_name: &str, organizations: &[&str], names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for organization in organizations {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *organization);
    }
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        })
        .collect();
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap()
}

#[test]
fn a_node_gets_the_certificates_that_are_its_own() {
    let client = ["digital signature".to_owned(), "client auth".to_owned()];
    let server = ["digital signature".to_owned(), "server auth".to_owned()];
    let node = User::authenticated("system:node:w1", [NODES.to_owned()]);
    let joining = User::authenticated("system:bootstrap:abcdef", [NODE_BOOTSTRAPPERS.to_owned()]);
    let names = Names {
        own: &["192.0.2.7".to_owned()],
        others: &[],
        reserved: &Reserved::default(),
    };
    let ask = |pem: &str, serving: bool, user: &User| {
        let request = SigningRequest {
            pem,
            signer: if serving {
                KUBELET_SERVING_SIGNER
            } else {
                KUBELET_CLIENT_SIGNER
            },
            usages: if serving { &server } else { &client },
            expiration_seconds: None,
        };
        approve(&request, user, &names)
    };
    let own = csr("system:node:w1", &[NODES], &[]);
    let serving = csr("system:node:w1", &[NODES], &["w1", "192.0.2.7"]);
    assert!(ask(&own, false, &node).is_ok());
    assert!(ask(&own, false, &joining).is_ok());
    assert!(ask(&serving, true, &node).is_ok());
    assert!(matches!(
        ask(&serving, true, &joining),
        Err(Refusal::NotTheirs { .. })
    ));
    assert!(matches!(
        ask(&serving, false, &node),
        Err(Refusal::NamesNotAllowed)
    ));
    assert!(matches!(ask(&own, true, &node), Err(Refusal::NoNames)));
    let other = csr("system:node:w2", &[NODES], &[]);
    assert!(matches!(
        ask(&other, false, &node),
        Err(Refusal::NotTheirs { .. })
    ));
    let greedy = csr("system:node:w1", &[MASTERS], &[]);
    assert!(matches!(
        ask(&greedy, false, &node),
        Err(Refusal::Organization(_))
    ));
    let admin = csr("admin", &[NODES], &[]);
    assert!(matches!(
        ask(&admin, false, &joining),
        Err(Refusal::CommonName(_))
    ));
    let foreign = csr("system:node:w1", &[NODES], &["kubernetes.default.svc"]);
    assert!(matches!(
        ask(&foreign, true, &node),
        Err(Refusal::ForeignAddress(_))
    ));
    assert!(matches!(
        ask("nonsense", false, &node),
        Err(Refusal::Malformed(_))
    ));
}

/// A node writes its own addresses: it must not get a certificate for whatever it writes there.
#[test]
fn a_node_gets_no_certificate_for_what_is_another_ones() {
    let pki = PkiConfig {
        data_dir: "/nowhere".into(),
        advertise: [192, 0, 2, 1].into(),
        port: 6443,
        cluster_domain: "cluster.local".to_owned(),
        hostname: "Master-1".to_owned(),
    };
    let reserved = pki.reserved(vec!["10.96.0.0/12".parse().unwrap()]);
    let others = ["w2".to_owned(), "192.0.2.8".to_owned()];
    let ask = |node: &str, name: &str, same_machine: bool| {
        let own = [name.to_owned()];
        let names = Names {
            own: &own,
            others: &others,
            reserved: &reserved,
        };
        let user = format!("system:node:{node}");
        let request = SigningRequest {
            pem: &csr(&user, &[NODES], &[name]),
            signer: KUBELET_SERVING_SIGNER,
            usages: &["digital signature".to_owned(), "server auth".to_owned()],
            expiration_seconds: None,
        };
        let mut user = User::authenticated(user, [NODES.to_owned()]);
        user.same_machine = same_machine;
        approve(&request, &user, &names)
    };
    assert!(ask("w1", "192.0.2.7", false).is_ok());
    for reserved in [
        "10.96.0.1",
        "10.111.4.4",
        "::ffff:10.96.0.1",
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "0.0.0.0",
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "Kubernetes.Default.SVC",
        "web.default.svc",
        "kubernetes.default.svc.cluster.local",
        "*.example.com",
    ] {
        for (node, same_machine) in [("w1", false), ("w1", true), (reserved, true)] {
            assert!(
                matches!(ask(node, reserved, same_machine), Err(Refusal::Reserved(_))),
                "{node} {reserved}"
            );
        }
    }
    for taken in others.iter() {
        assert!(matches!(ask("w1", taken, true), Err(Refusal::Taken(_))));
    }
    // A node beside the control plane has the machine's name and address.
    for hosts in ["192.0.2.1", "master-1"] {
        assert!(matches!(ask("w1", hosts, false), Err(Refusal::Reserved(_))));
        assert!(ask("w1", hosts, true).is_ok());
    }
}

#[test]
fn a_client_gets_the_certificate_that_somebody_approved() {
    let directory = tempfile::tempdir().unwrap();
    let config = PkiConfig {
        data_dir: directory.path().into(),
        advertise: [192, 0, 2, 1].into(),
        port: 6443,
        cluster_domain: "cluster.local".to_owned(),
        hostname: "host".to_owned(),
    };
    let now = SystemTime::now();
    let pki = super::super::pki::Pki::open(&config, now).unwrap();
    let client = ["client auth".to_owned()];
    let request = |pem| SigningRequest {
        pem,
        signer: CLIENT_SIGNER,
        usages: &client,
        expiration_seconds: Some(3600),
    };
    let jane = csr("jane", &["devs"], &[]);
    let signed = sign_csr(&pki.ca, &request(&jane), now).unwrap();
    let (_, found) = x509_parser::pem::parse_x509_pem(signed.as_bytes()).unwrap();
    let found = found.parse_x509().unwrap();
    assert_eq!(common_name(found.subject()).as_deref(), Some("jane"));
    assert_eq!(organizations(found.subject()), ["devs"]);
    let usages = found.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.client_auth && !usages.server_auth);

    // Nobody has it without a person, and nobody becomes an administrator by it.
    let names = Names {
        own: &[],
        others: &[],
        reserved: &Reserved::default(),
    };
    let node = csr("system:node:w1", &[NODES], &[]);
    let user = User::authenticated("system:node:w1", [NODES.to_owned()]);
    assert!(approve(&request(&node), &user, &names).is_err());
    let admin = csr("jane", &[MASTERS], &[]);
    assert!(asks_for_masters(&request(&admin)) && !asks_for_masters(&request(&jane)));
    assert!(sign_csr(&pki.ca, &request(&admin), now).is_err());
    let server = ["server auth".to_owned(), "client auth".to_owned()];
    let serving = SigningRequest {
        usages: &server,
        ..request(&jane)
    };
    assert!(matches!(
        sign_csr(&pki.ca, &serving, now),
        Err(Refusal::Usages(_))
    ));
}
