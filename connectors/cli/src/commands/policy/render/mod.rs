//! `sealflow policy render`: keys, key policies and IAM policies that match a policy, as Terraform.

mod aws;
mod client;
mod enclave;
#[cfg(test)]
mod enclave_tests;
mod gcp;
mod hcl;
mod statement;
mod terraform;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use sealflow::acl::Principal;
use sealflow::policy::publish::{domain_history, history};
use sealflow::policy::{ColumnRule, DeadLetterRule, MacRule, Policy, PolicySourceError, VerifiedPolicy};
use serde_json::json;

use self::aws::{Domain, Parties, Subject};
use self::gcp::Members;
use super::{Trusted, Trusting};
use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};
use crate::services::{check_supported, clock, read_unsigned};
use crate::term::{harmless, note, say};

/// Render keys, key policies and IAM policies that match a policy, as Terraform
///
/// For AWS: the whole key policy of every KMS key that the policy names, in which each Allow of cryptography has the
/// encryption contexts that the policy gives as its condition; and an IAM policy for every role, which matches. Keys behind
/// enclave columns give plaintext to workers of the policy's measurements alone. For Google
/// Cloud: a crypto key for each policy key and ACL, since Cloud KMS has no such conditions. This version of Sealflow calls AWS
/// KMS only, so what is rendered for Google Cloud prepares keys and roles.
///
/// IAM cannot say everything that a policy says. What is left out, it never gives instead, and a warning and a comment name it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The datasets; all that share a KMS key, since it has one key policy
    #[arg(value_name = "DATASET")]
    datasets: Vec<String>,
    /// For which cloud
    #[arg(long, value_enum, value_name = "CLOUD")]
    terraform: Cloud,
    /// Render this policy file, which nobody signed, instead of the catalogue's newest. With a catalogue, it is refused if other
    /// datasets there share its KMS keys; without one, nobody looks
    #[arg(long, value_name = "POLICY", conflicts_with = "datasets")]
    dev: Option<PathBuf>,
    /// Who seals: ARN of a role or user, or a member of Google's IAM; may be repeated
    #[arg(long = "sealer", value_name = "ARN|MEMBER")]
    sealers: Vec<String>,
    /// Who opens for others and enforces the ACLs itself: a service's role; may be repeated
    #[arg(long = "service", value_name = "ARN|MEMBER")]
    services: Vec<String>,
    /// Who administers the keys, without cryptography; default on AWS: the account of each key. Keys behind enclave columns need a
    /// role: it alone may change their key policies
    #[arg(long = "admin", value_name = "ARN|MEMBER")]
    admins: Vec<String>,
    /// Who runs `keys rotate`, `keys rewrap` and `keys pair`. Whoever may rewrap can open: they can wrap a key under one of their own
    #[arg(long = "maintainer", value_name = "ARN")]
    maintainers: Vec<String>,
    /// Where readers are told apart: each by its own rights at KMS, or by the service alone. Default: `service` if there is
    /// one. Who opens dead letters always has rights of its own
    #[arg(long, value_enum, value_name = "WHERE")]
    readers: Option<Readers>,
    /// AWS: also deny other encryption contexts, and new grants. Grants that exist survive in the contexts of the policy: find
    /// them with `aws kms list-grants` and revoke them
    #[arg(long)]
    deny_others: bool,
    /// AWS: also render the keys themselves, imported by `import` blocks. A new key is made first (`aws kms create-key`), since
    /// the policy names its ARN. Replicas of multi-Region keys are not supported
    #[arg(long)]
    import_keys: bool,
    /// AWS: print the policy documents themselves, as one JSON document, for `aws kms put-key-policy`
    #[arg(long)]
    documents: bool,
    /// Google Cloud: `projects/PROJECT/locations/LOCATION/keyRings/RING`, which is there already
    #[arg(long, value_name = "NAME")]
    key_ring: Option<String>,
    /// Where it goes; default: standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it is there
    #[arg(long, requires = "output")]
    force: bool,
    #[command(flatten)]
    trusting: Trusting,
}

/// Where keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cloud {
    /// AWS KMS
    Aws,
    /// Google Cloud KMS
    Gcp,
}

/// Who tells readers apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Readers {
    /// KMS: each has its own rights
    #[default]
    Kms,
    /// A service, which alone has rights
    Service,
}

/// What was read.
struct Loaded {
    policies: Vec<VerifiedPolicy>,
    domains: BTreeMap<String, Domain>,
    /// What holds for values of earlier versions.
    notes: BTreeSet<String>,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let readers = args.readers()?;
    let loaded = match &args.dev {
        Some(path) => unsigned_beside_others(args, path).await?,
        None => newest(args).await?,
    };
    for policy in &loaded.policies {
        check_supported(policy)?;
    }
    let subject = Subject {
        policies: &loaded.policies,
        domains: loaded.domains,
        now: clock().now(),
    };
    let (text, unsaid) = match args.terraform {
        Cloud::Aws => args.aws(&subject, readers, &loaded.notes)?,
        Cloud::Gcp => args.gcp(&subject, readers)?,
    };
    for what in &unsaid {
        note(format_args!("warning: {}", harmless(what)));
    }
    match &args.output {
        Some(path) => {
            files::write_new(path, text.as_bytes(), Access::Shared, args.force)?;
            say(format_args!("wrote {}", path.display()));
        }
        None => say(text.trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn readers(&self) -> Result<Readers> {
        let default = if self.services.is_empty() {
            Readers::Kms
        } else {
            Readers::Service
        };
        let readers = self.readers.unwrap_or(default);
        if readers == Readers::Service && self.services.is_empty() {
            return Err(Failure::usage(
                "--readers service without a service: nobody could open anything",
                "name its role with --service ARN",
            ));
        }
        Ok(readers)
    }

    fn aws(
        &self,
        subject: &Subject<'_>,
        readers: Readers,
        notes: &BTreeSet<String>,
    ) -> Result<(String, BTreeSet<String>)> {
        if self.key_ring.is_some() {
            return Err(Failure::usage("--key-ring is of Google Cloud", "leave it out"));
        }
        refuse_two_purposes(subject)?;
        let parties = Parties {
            sealers: arns("--sealer", &self.sealers)?,
            services: arns("--service", &self.services)?,
            admins: admins(&self.admins)?,
            maintainers: arns("--maintainer", &self.maintainers)?,
            readers,
            deny_others: self.deny_others,
        };
        enclave::check(&subject.enclave_keys(), &parties.admins)?;
        let mut rendered = aws::render(subject, &parties);
        let short = |(name, document)| (terraform::policy_name(name), document);
        rendered.identities = rendered
            .identities
            .iter()
            .map(|(name, document)| short((name, document.clone())))
            .collect();
        terraform::check_sizes(&rendered)?;
        rendered.unsaid.extend(notes.iter().cloned());
        if self.documents {
            let of = |documents: &BTreeMap<String, statement::Document>| {
                let entries = documents
                    .iter()
                    .map(|(name, document)| (name.clone(), document.to_json()));
                entries.collect::<serde_json::Map<_, _>>()
            };
            let keys = of(&rendered.keys);
            let json =
                json!({ "key_policies": keys, "iam_policies": of(&rendered.identities), "not_said": rendered.unsaid });
            return Ok((format!("{json:#}\n"), rendered.unsaid));
        }
        let mut head = self.head(subject, "aws");
        head.extend([
            String::new(),
            "It needs hashicorp/aws 6 or newer. Each aws_kms_key_policy is the whole policy of its key: what it does not name".to_owned(),
            "loses its rights. Keys of several accounts need providers aws.account_ACCOUNT. Attach the aws_iam_policy of a role to".to_owned(),
            "it (aws_iam_role_policy_attachment): roles of other accounts, and those that a pattern names, need both sides.".to_owned(),
            String::new(),
            "prevent_destroy guards a block only while it stands here. When a key has gone from this file, make Terraform forget it".to_owned(),
            "(`terraform state rm`, or a `removed` block with destroy = false) before you apply: else it is destroyed.".to_owned(),
        ]);
        if self.deny_others {
            head.extend([
                String::new(),
                "Other encryption contexts and new grants are denied to everybody. Grants that exist survive in the contexts of the".to_owned(),
                "policy: find them with `aws kms list-grants`, and revoke them.".to_owned(),
            ]);
        }
        head.extend(comment(&rendered.unsaid, "IAM"));
        let blocks = terraform::blocks(&rendered, self.import_keys);
        Ok((hcl::file(&head, &blocks), rendered.unsaid))
    }

    fn gcp(&self, subject: &Subject<'_>, readers: Readers) -> Result<(String, BTreeSet<String>)> {
        let aws_only = self.deny_others || self.import_keys || self.documents || !self.maintainers.is_empty();
        if aws_only {
            return Err(Failure::usage(
                "--maintainer, --deny-others, --import-keys and --documents are for AWS",
                "leave them out",
            ));
        }
        if let Some(key) = subject.enclave_keys().into_keys().next() {
            return Err(Failure::config(
                format_args!("{key} is behind enclave columns, and Cloud KMS takes no attestation documents of Nitro"),
                "render them for AWS",
            ));
        }
        let members = Members {
            key_ring: key_ring(self.key_ring.as_deref())?,
            sealers: members("--sealer", &self.sealers)?,
            services: members("--service", &self.services)?,
            admins: members("--admin", &self.admins)?,
            readers,
        };
        let rendered = gcp::render(subject, &members);
        let mut head = self.head(subject, "gcp");
        head.extend([
            String::new(),
            "This version of Sealflow calls AWS KMS only: this file prepares keys and roles. Cloud KMS cannot condition on".to_owned(),
            "additional authenticated data, so there is one crypto key for each policy key and ACL.".to_owned(),
            "It needs hashicorp/google 6 or newer.".to_owned(),
        ]);
        head.extend(comment(&rendered.unsaid, "Google's IAM"));
        Ok((hcl::file(&head, &rendered.blocks), rendered.unsaid))
    }

    fn head(&self, subject: &Subject<'_>, cloud: &str) -> Vec<String> {
        let mut lines = vec![format!(
            "Written by `sealflow policy render --terraform {cloud}`: do not edit it, render it again."
        )];
        for policy in subject.policies {
            let owner = policy
                .owner()
                .map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
            let policy = policy.policy();
            let hash: String = policy.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push(format!(
                "{}, version {}, SHA-256 {hash}, signed by {owner}",
                policy.dataset, policy.version
            ));
        }
        lines
    }
}

fn comment(unsaid: &BTreeSet<String>, whose: &str) -> Vec<String> {
    if unsaid.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        String::new(),
        format!("What {whose} cannot say, and this file does not give:"),
    ];
    lines.extend(unsaid.iter().map(|what| format!("- {}", harmless(what))));
    lines
}

fn unsigned(path: &std::path::Path) -> Result<Loaded> {
    let policy = read_unsigned(path)?;
    if let Some(domain) = policy.policy().columns.iter().find_map(ColumnRule::sealing_domain) {
        return Err(Failure::usage(
            format_args!("{}: the document of domain {domain} is not at hand", path.display()),
            "publish the policy, and render it from the catalogue",
        ));
    }
    Ok(Loaded {
        policies: vec![policy],
        domains: BTreeMap::new(),
        notes: BTreeSet::new(),
    })
}

/// What nobody signed. Whether other datasets share its KMS keys, a catalogue knows if there is one.
async fn unsigned_beside_others(args: &Args, path: &std::path::Path) -> Result<Loaded> {
    let loaded = unsigned(path)?;
    if args.terraform == Cloud::Gcp {
        return Ok(loaded);
    }
    if !args.trusting.has_catalogue() {
        note(
            "warning: other datasets on the same KMS keys were not looked at, and would lose their rights: give --catalogue",
        );
        return Ok(loaded);
    }
    let policies = loaded.policies.iter();
    let datasets: BTreeSet<String> = policies.map(|policy| policy.policy().dataset.clone()).collect();
    let trusted = args.trusting.open(None).await?;
    refuse_to_lock_out(&trusted, &datasets, &loaded).await?;
    Ok(loaded)
}

async fn newest(args: &Args) -> Result<Loaded> {
    let trusted = args.trusting.open(None).await?;
    let mut datasets: BTreeSet<String> = args.datasets.iter().cloned().collect();
    if datasets.is_empty() {
        datasets.insert(trusted.dataset(None)?);
    }
    let source = trusted.policies_to_look_at()?;
    let mut loaded = Loaded {
        policies: Vec::new(),
        domains: BTreeMap::new(),
        notes: BTreeSet::new(),
    };
    for dataset in &datasets {
        let policy = source.policy(dataset).await?;
        loaded.notes.extend(sealed_otherwise(&trusted, policy.policy()).await?);
        loaded.policies.push(policy.as_ref().clone());
    }
    let columns = loaded.policies.iter().flat_map(|policy| &policy.policy().columns);
    let domains: BTreeSet<String> = columns
        .filter_map(|rule| rule.sealing_domain().map(str::to_owned))
        .collect();
    for name in domains {
        let newest = source.domain(&name, None).await?;
        let mut keys = BTreeSet::new();
        for document in domain_history(trusted.catalogue.as_ref(), &name, &trusted.owners).await? {
            keys.insert(document?.document().arn.clone());
        }
        let (newest, acl) = (newest.document().arn.clone(), newest.document().acl.clone());
        loaded.domains.insert(name, Domain { newest, keys, acl });
    }
    refuse_to_lock_out(&trusted, &datasets, &loaded).await?;
    Ok(loaded)
}

/// What was sealed under one ACL, and is governed by another now or by none: KMS goes by the name that was sealed.
async fn sealed_otherwise(trusted: &Trusted, now: &Policy) -> Result<BTreeSet<String>> {
    // The last version of each label, or of the dead letters, under each ACL.
    let mut columns: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut letters: BTreeMap<String, u64> = BTreeMap::new();
    for entry in history(trusted.catalogue.as_ref(), &now.dataset, &trusted.owners).await? {
        // What is not believed has sealed nothing.
        let Ok(before) = entry.policy else { continue };
        let before = before.policy();
        for rule in before.columns.iter().filter(|rule| rule.domain().is_none()) {
            let last = columns.entry((rule.label.clone(), rule.acl.clone())).or_default();
            *last = entry.version.max(*last);
        }
        if let Some(group) = before.dead_letter_group() {
            let last = letters.entry(group.acl).or_default();
            *last = entry.version.max(*last);
        }
    }
    let mut notes = BTreeSet::new();
    let dataset = &now.dataset;
    for ((label, acl), version) in columns {
        let Some(sealed) = now.current_acl(&acl) else { continue };
        let guards = now
            .columns
            .iter()
            .any(|rule| rule.domain().is_none() && rule.acl == sealed);
        let still = match now.acl_for_label(&label) {
            Some(counts) if counts != sealed && guards => {
                format!(
                    "ACL {counts} counts for them now: KMS still opens them for the readers of {sealed}, and for no others"
                )
            }
            Some(counts) if counts != sealed => {
                format!(
                    "ACL {counts} counts for them now: KMS opens them for nobody, since {sealed} guards no column any more"
                )
            }
            None if guards => {
                format!(
                    "the policy has no ACL for them any more: KMS still opens them for the readers of {sealed}, which guards other columns"
                )
            }
            _ => continue,
        };
        notes.insert(format!(
            "{dataset}: values of {label} from version {version} and before were sealed under ACL {acl}, and {still}"
        ));
    }
    for (acl, version) in letters {
        let counts = match now.dead_letters.as_ref().map(|rule| (rule, now.current_acl(&acl))) {
            Some((DeadLetterRule::Key { acl: counts, .. }, Some(sealed))) if sealed != counts => {
                format!("ACL {counts} counts for them now")
            }
            Some((DeadLetterRule::Recipient(_), _)) => "later ones go to a recipient".to_owned(),
            _ => continue,
        };
        notes.insert(format!(
            "{dataset}: dead letters from version {version} and before were sealed under ACL {acl}, and {counts}: KMS opens them \
             for nobody"
        ));
    }
    Ok(notes)
}

/// Who may unwrap data keys under the KMS key of a pair could unwrap its private half. A policy is held to that by itself; here
/// one is beside others.
fn refuse_two_purposes(subject: &Subject<'_>) -> Result<()> {
    let clients = client::keys(subject.policies);
    for policy in subject.policies {
        let policy = policy.policy();
        let current = policy.keys.values().map(|key| &key.arn);
        let data = current.chain(policy.previous.keys.iter().map(|key| &key.arn));
        if let Some(key) = data.into_iter().find(|key| clients.contains_key(*key)) {
            return Err(for_clients_too(key, &format!("dataset {}", policy.dataset)));
        }
    }
    for (name, domain) in &subject.domains {
        if let Some(key) = domain.keys.iter().find(|key| clients.contains_key(*key)) {
            return Err(for_clients_too(key, &format!("domain {name}")));
        }
    }
    refuse_enclave_keys_of_others(subject)
}

/// An enclave's key serves nothing else: the backend has no rights there without a worker, and needs them elsewhere.
fn refuse_enclave_keys_of_others(subject: &Subject<'_>) -> Result<()> {
    let enclave = subject.enclave_keys();
    let refused = |key: &str, what: String| {
        Failure::config(
            format_args!("{key} is behind enclave columns, and serves {what} too"),
            "give enclave columns KMS keys of their own",
        )
    };
    for policy in subject.policies {
        let policy = policy.policy();
        if let Some(key) = enclave::of_backend(policy)
            .into_iter()
            .find(|key| enclave.contains_key(*key))
        {
            return Err(refused(
                key,
                format!("what the backend opens in dataset {}", policy.dataset),
            ));
        }
    }
    for (name, domain) in &subject.domains {
        if let Some(key) = domain.keys.iter().find(|key| enclave.contains_key(*key)) {
            return Err(refused(key, format!("domain {name}")));
        }
    }
    Ok(())
}

fn for_clients_too(key: &str, what: &str) -> Failure {
    Failure::config(
        format_args!(
            "{key} is behind a key that clients seal to, and wraps keys of {what} too: its readers could open for clients"
        ),
        "give what clients seal to a KMS key of its own",
    )
}

/// A key has one policy: rendered for some of its datasets, it would take the others' rights away.
async fn refuse_to_lock_out(trusted: &Trusted, datasets: &BTreeSet<String>, loaded: &Loaded) -> Result<()> {
    let keys_of = |policy: &Policy| -> BTreeSet<String> {
        let previous = policy.previous.keys.iter().map(|key| key.arn.clone());
        let of_enclave = policy.enclave.iter().map(|rule| &rule.client);
        let clients = policy.client.iter().chain(of_enclave).flat_map(|rule| {
            let macs = rule.mac.iter().flat_map(MacRule::arns);
            rule.arns().chain(macs).map(str::to_owned)
        });
        policy
            .keys
            .values()
            .map(|key| key.arn.clone())
            .chain(previous)
            .chain(clients)
            .collect()
    };
    let mut ours: BTreeSet<String> = loaded
        .policies
        .iter()
        .flat_map(|policy| keys_of(policy.policy()))
        .collect();
    ours.extend(loaded.domains.values().flat_map(|domain| domain.keys.iter().cloned()));
    let source = trusted.policies_to_look_at()?;
    let paths = trusted.catalogue.list("policies").await?;
    let others: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').nth(1)).collect();
    for other in others.into_iter().filter(|other| !datasets.contains(*other)) {
        let Some(policy) = believed(source.policy(other).await, other)? else {
            continue;
        };
        if let Some(key) = keys_of(policy.policy()).intersection(&ours).next() {
            return Err(shared(key, &format!("dataset {other}"), &format!("name {other} too")));
        }
        for domain in policy.policy().columns.iter().filter_map(ColumnRule::sealing_domain) {
            believed(source.domain(domain, None).await, other)?;
            for document in domain_history(trusted.catalogue.as_ref(), domain, &trusted.owners).await? {
                let Ok(document) = document else { continue };
                if ours.contains(&document.document().arn) {
                    let what = format!("domain {domain} of dataset {other}");
                    return Err(shared(&document.document().arn, &what, &format!("name {other} too")));
                }
            }
        }
    }
    Ok(())
}

/// What another dataset says; `None` if there is nothing by which anybody seals. What this caller does not believe may be
/// believed by its own pipelines, and have the same key.
fn believed<T>(found: std::result::Result<T, PolicySourceError>, other: &str) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(PolicySourceError::Missing { .. }) => Ok(None),
        Err(error @ PolicySourceError::Untrusted { .. }) => Err(Failure::config(
            format_args!("whether dataset {other} shares a KMS key cannot be told: {error}"),
            format_args!("pin its owner too: --owner '{other}=THUMBPRINT'"),
        )),
        Err(error) => Err(error.into()),
    }
}

fn shared(key: &str, what: &str, help: &str) -> Failure {
    Failure::new(
        Exit::Config,
        format_args!("{key} is also the key of {what}: its one key policy would take that one's rights away"),
        format_args!("{help}: `sealflow policy render DATASET DATASET…`"),
    )
}

/// Roles and users.
fn arns(option: &str, given: &[String]) -> Result<BTreeSet<String>> {
    let mut arns = BTreeSet::new();
    for text in given {
        match text.parse::<Principal>() {
            Ok(principal @ Principal::Iam { .. }) => {
                arns.insert(principal.to_string());
            }
            Ok(_) => {
                return Err(Failure::usage(
                    format_args!("{option} {}: no principal of IAM", harmless(text)),
                    "give the ARN of a role or user",
                ));
            }
            Err(error) => {
                return Err(Failure::usage(
                    format_args!("{option} {}: {error}", harmless(text)),
                    error.help(),
                ));
            }
        }
    }
    Ok(arns)
}

/// As [`arns`], and accounts.
fn admins(given: &[String]) -> Result<BTreeSet<String>> {
    let is_root = |text: &String| {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        matches!(parts[..], ["arn", partition, "iam", "", account, "root"]
            if partition.starts_with("aws") && partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
                && account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))
    };
    let (roots, others): (Vec<_>, Vec<_>) = given.iter().cloned().partition(is_root);
    let mut admins = arns("--admin", &others)?;
    admins.extend(roots);
    Ok(admins)
}

/// Members of Google's IAM: single identities and groups, never everybody.
fn members(option: &str, given: &[String]) -> Result<BTreeSet<String>> {
    let mut members = BTreeSet::new();
    for text in given {
        let plain = |name: &str| {
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"@._+-/:=%".contains(&b))
                && !name.is_empty()
        };
        let known = [
            "serviceAccount:",
            "user:",
            "group:",
            "principal://iam.googleapis.com/",
            "principalSet://iam.googleapis.com/",
        ];
        let is_member = known.iter().any(|kind| text.strip_prefix(kind).is_some_and(plain));
        if !is_member {
            return Err(Failure::usage(
                format_args!("{option} {}: no member of Google's IAM", harmless(text)),
                "for example serviceAccount:pipeline@my-project.iam.gserviceaccount.com",
            ));
        }
        members.insert(text.clone());
    }
    Ok(members)
}

fn key_ring(given: Option<&str>) -> Result<String> {
    let Some(text) = given else {
        return Err(Failure::usage(
            "no key ring",
            "give --key-ring projects/PROJECT/locations/LOCATION/keyRings/RING",
        ));
    };
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b));
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        ["projects", project, "locations", location, "keyRings", ring]
            if [project, location, ring].into_iter().all(plain) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Failure::usage(
            format_args!("--key-ring {}: not the name of a key ring", harmless(text)),
            "give projects/PROJECT/locations/LOCATION/keyRings/RING",
        )),
    }
}
