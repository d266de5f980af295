//! A running service over sealed records, an issuer, and callers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use sealflow::jose::PrivateJwk;
use sealflow_testbed::{Instance, KEY_ARN, Site};
use serde_json::Value;

use crate::certificate::Authority;
use crate::client::Client;
use crate::issuer::{ISSUER, Issuer, SERVER};

pub(crate) const EMAIL: &str = "ann@example.com";
pub(crate) const NOTE: &str = "canary-note-8d1f";
pub(crate) const RECORDS: usize = 3;

/// `ops` are those who may see notes; `more` further lines at the top.
pub(crate) fn policy(version: u32, ops: &str, more: &str) -> String {
    format!(
        r#"
dataset: payments
version: {version}
{more}
keys: {{ default: {{ arn: "{KEY_ARN}" }} }}
acls:
  pii:
    allow:
      - "oidc:{ISSUER}#sub=alice"
      - "oidc:{ISSUER}#sub=bob"
      - arn:aws:iam::111122223333:role/analyst
      - {{ principal: "arn:aws:iam::111122223333:role/temp", until: "2026-01-01T00:00:00Z" }}
      - {{ principal: "oidc:{ISSUER}#group=fraud", purposes: [fraud] }}
    refused: redact
  ops: {{ allow: [{ops}] }}
columns:
  - {{ path: user.email, key: default, acl: pii }}
  - {{ path: note, key: default, acl: ops }}
"#
    )
}

pub(crate) fn ops() -> String {
    format!("\"oidc:{ISSUER}#sub=alice\"")
}

pub(crate) fn record(n: usize) -> String {
    format!(r#"{{"n":{n}, "user":{{"email":"{EMAIL}","age":30.50}},"note":"{NOTE}"}}"#)
}

pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealflow"))
}

/// A site with sealed records.
pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) issuer: Issuer,
    pub(crate) authority: Authority,
    /// Sealed records, one JSON document each.
    pub(crate) sealed: Vec<String>,
    auditor: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_policy(&policy(1, &ops(), ""))
    }

    pub(crate) fn with_policy(policy: &str) -> Self {
        Self::on(Site::new("127.0.0.1:1"), policy)
    }

    pub(crate) fn on(site: Site, policy: &str) -> Self {
        site.publish("payments", 1, policy);
        if policy.contains("lease: required") {
            site.lease(policy, Duration::from_secs(5));
        }
        let auditor = PrivateJwk::generate().unwrap();
        let key = site.path().join("audit.key");
        std::fs::write(&key, auditor.to_private_json().expose()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let records: Vec<String> = (0..RECORDS).map(record).collect();
        std::fs::write(site.path().join("records.ndjson"), records.join("\n") + "\n").unwrap();
        let bench = Self {
            auditor: auditor.thumbprint().to_string(),
            authority: Authority::new(),
            issuer: Issuer::start(),
            sealed: Vec::new(),
            site,
        };
        let owner = bench.site.owner().to_string();
        let endpoint = bench.site.kms().endpoint();
        let sealing = [
            "seal",
            "--dataset",
            "payments",
            "--catalogue",
            "catalogue",
            "--owner",
            &owner,
            "--kms-endpoint",
            &endpoint,
            "--kms-region",
            "eu-central-1",
            "-o",
            "sealed.ndjson",
            "records.ndjson",
        ];
        let sealed = bench.run("pipeline", &sealing);
        assert!(sealed.status.success(), "{}", String::from_utf8_lossy(&sealed.stderr));
        let sealed = std::fs::read_to_string(bench.site.path().join("sealed.ndjson")).unwrap();
        assert!(!sealed.contains(EMAIL) && !sealed.contains(NOTE));
        Self {
            sealed: sealed.lines().map(str::to_owned).collect(),
            ..bench
        }
    }

    pub(crate) fn run(&self, role: &str, args: &[&str]) -> Output {
        self.site.command(binary(), role, args).output().unwrap()
    }

    /// The request for all records, with further members.
    pub(crate) fn records(&self, more: &str) -> String {
        format!(
            r#"{{"dataset":"payments",{more}"records":[{}]}}"#,
            self.sealed.join(",")
        )
    }

    /// A sealed note.
    pub(crate) fn sealed_note(&self) -> String {
        let record: Value = serde_json::from_str(&self.sealed[0]).unwrap();
        record["note"].as_str().unwrap().to_owned()
    }

    /// What `sealflow token` makes of a role's credentials.
    pub(crate) fn presigned(&self, role: &str) -> String {
        self.presigned_for(role, SERVER)
    }

    pub(crate) fn presigned_for(&self, role: &str, server: &str) -> String {
        self.presigned_with(role, server, &[])
    }

    /// The same with further options of `sealflow token`.
    pub(crate) fn presigned_with(&self, role: &str, server: &str, more: &[&str]) -> String {
        let endpoint = self.site.kms().endpoint();
        let endpoint = endpoint.trim_end_matches('/');
        let args = [
            "token",
            "--server-id",
            server,
            "--region",
            "eu-central-1",
            "--sts-endpoint",
            endpoint,
        ];
        let made = self.run(role, &[&args[..], more].concat());
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let header = String::from_utf8(made.stdout).unwrap();
        header.trim().strip_prefix("Authorization: ").unwrap().to_owned()
    }

    /// Writes `service.yaml`, with further lines at the top level, and a certificate.
    pub(crate) fn configure(&self, sts: &str, more: &str) -> PathBuf {
        self.certify(1_000);
        let (catalogue, owner) = (self.site.catalogue(), self.site.owner());
        let (catalogue, endpoint, keys) = (catalogue.display(), self.site.kms().endpoint(), self.issuer.address);
        let yaml = format!(
            r#"name: read
listen: 127.0.0.1:0
tls: {{ certificate: cert.pem, key: tls.key }}
catalogue: {{ folder: "{catalogue}" }}
trust: {{ owners: ["{owner}"] }}
kms: {{ region: eu-central-1, endpoint: "{endpoint}", sts_endpoint: "{endpoint}" }}
identity:
  server_id: {SERVER}
  sts: {{ endpoints: ["{}"] }}
  oidc: [{{ issuer: "{ISSUER}", audiences: [{SERVER}], jwks_uri: "http://{keys}/keys" }}]
audit: {{ to: file, path: log/audit.log, key: audit.key, checkpoints: audit.checkpoints }}
admin: {{ listen: "127.0.0.1:0" }}
{more}
"#,
            sts.trim_end_matches('/')
        );
        std::fs::create_dir_all(self.site.path().join("log")).unwrap();
        let path = self.site.path().join("service.yaml");
        std::fs::write(&path, yaml).unwrap();
        path
    }

    /// A new certificate.
    pub(crate) fn certify(&self, serial: u32) {
        let (certificate, key) = self.authority.issue(serial);
        std::fs::write(self.site.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(self.site.path().join("tls.key"), key).unwrap();
    }

    pub(crate) fn start(&self, more: &str) -> Serving {
        self.start_with_sts(&self.site.kms().endpoint(), more)
    }

    pub(crate) fn start_with_sts(&self, sts: &str, more: &str) -> Serving {
        let path = self.configure(sts, more);
        self.start_file(&path, &[])
    }

    /// The service of that file, with these variables of the environment.
    pub(crate) fn start_file(&self, path: &Path, environment: &[(&str, &Path)]) -> Serving {
        // What an earlier one said of its addresses counts no more.
        let _ = std::fs::remove_file(path.with_extension("log"));
        let mut command = self
            .site
            .command(binary(), "pipeline", &["serve", path.to_str().unwrap()]);
        command.envs(environment.iter().copied());
        let mut instance = Instance::start(command, &path.with_extension("log"));
        let until = Instant::now() + Duration::from_secs(60);
        let mut address = |key: &str| loop {
            let log = instance.read_log();
            let found = log
                .split(key)
                .nth(1)
                .and_then(|rest| rest.split_once(char::is_whitespace)?.0.parse().ok());
            if let Some(address) = found {
                return address;
            }
            assert!(instance.ended().is_none() && Instant::now() < until, "{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        let (listen, admin) = (address(" listen="), address(" admin="));
        Serving {
            client: Client::new(self.authority.root(), listen),
            admin,
            instance,
        }
    }

    /// What the audit log says, which must be whole and hold no value.
    pub(crate) fn audited(&self, more: &[&str]) -> Vec<Value> {
        let verified = self.run(
            "intern",
            &[
                "audit",
                "verify",
                "log/audit.log",
                "--checkpoints",
                "audit.checkpoints",
                "--key",
                &self.auditor,
            ],
        );
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
        let found = self.run(
            "intern",
            &[&["audit", "query", "log/audit.log", "--output", "json"], more].concat(),
        );
        let text = String::from_utf8(found.stdout).unwrap();
        assert!(
            found.status.success() && !text.contains(EMAIL) && !text.contains(NOTE),
            "{text}"
        );
        serde_json::from_str(&text).unwrap()
    }
}

/// A service that runs; killed when dropped.
pub(crate) struct Serving {
    pub(crate) client: Client,
    pub(crate) admin: std::net::SocketAddr,
    pub(crate) instance: Instance,
}

impl Serving {
    /// Ends it by SIGTERM, and expects that it held nothing back and logged no value.
    pub(crate) fn stop(self) -> String {
        self.instance.terminate();
        let (status, log) = self.instance.wait(Duration::from_secs(60));
        assert!(
            status.success() && !log.contains(EMAIL) && !log.contains(NOTE),
            "{status}: {log}"
        );
        log
    }

    /// A page of the admin port.
    pub(crate) fn admin(&self, path: &str) -> String {
        use std::io::Write as _;
        let mut stream = std::net::TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        crate::client::read(&mut stream).unwrap().body
    }
}
