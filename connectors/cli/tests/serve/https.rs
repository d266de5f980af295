//! Key sets over HTTPS: from an issuer whose certificate is trusted, and from nobody else.

use std::path::PathBuf;

use crate::bench::{Bench, Serving};
use crate::certificate::Authority;
use crate::issuer::Issuer;

/// A bench whose issuer answers over TLS, at that host, and files with the root of its authority and with another.
fn bench_at(host: &str) -> (Bench, PathBuf, PathBuf, PathBuf) {
    let mut bench = Bench::new();
    bench.issuer = Issuer::start_tls(&bench.authority);
    let path = bench.configure(&bench.site.kms().endpoint(), "");
    let yaml = std::fs::read_to_string(&path).unwrap();
    let (port, address) = (bench.issuer.address.port(), bench.issuer.address);
    let over_tls = yaml.replace(
        &format!("http://{address}/keys"),
        &format!("https://{host}:{port}/keys"),
    );
    assert_ne!(over_tls, yaml);
    std::fs::write(&path, over_tls).unwrap();
    let root = |name: &str, authority: &Authority| {
        let file = bench.site.path().join(name);
        std::fs::write(&file, authority.root().to_pem().unwrap()).unwrap();
        file
    };
    let (own, other) = (root("own.pem", &bench.authority), root("other.pem", &Authority::new()));
    (bench, path, own, other)
}

/// What `serve --check` says with these trusted roots, and its exit code.
fn check(bench: &Bench, roots: &PathBuf) -> (Option<i32>, String) {
    let mut command = bench.site.command(
        crate::bench::binary(),
        "pipeline",
        &["serve", "--check", "service.yaml"],
    );
    let output = command.env("SSL_CERT_FILE", roots).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.code(), said)
}

#[test]
fn keys_are_fetched_over_https_from_whom_the_roots_vouch_for_and_from_nobody_else() {
    let (bench, path, own, other) = bench_at("127.0.0.1");
    let (code, said) = check(&bench, &own);
    assert!(
        code == Some(0) && said.contains("ok keys of https://login.example.com"),
        "{code:?} {said}"
    );
    assert_eq!(bench.issuer.asked(), 1);
    let (code, said) = check(&bench, &other);
    assert_eq!(code, Some(69), "{said}");
    for what in [
        "the keys of https://login.example.com cannot be fetched",
        "its certificate is not trusted",
        "help: ",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert_eq!(bench.issuer.asked(), 1, "nothing is asked of whom nobody vouches for");

    // A service that runs: the same, for its callers.
    let alice = bench.issuer.token("alice");
    let whoami = |serving: &Serving| serving.client.whoami(&alice);
    let serving = bench.start_file(&path, &[("SSL_CERT_FILE", &own)]);
    assert_eq!(whoami(&serving).status, 200);
    serving.stop();
    let serving = bench.start_file(&path, &[("SSL_CERT_FILE", &other)]);
    let answer = whoami(&serving);
    assert_eq!((answer.status, answer.code().as_str()), (503, "keys-unavailable"));
    serving.stop();
}

#[test]
fn a_certificate_of_another_name_is_not_that_of_the_issuer() {
    // The authority is trusted, and vouches for 127.0.0.1 alone.
    let (bench, _, own, _) = bench_at("127.0.0.2");
    let (code, said) = check(&bench, &own);
    assert!(
        code == Some(69) && said.contains("its certificate is not trusted"),
        "{code:?} {said}"
    );
    assert_eq!(bench.issuer.asked(), 0);
}
