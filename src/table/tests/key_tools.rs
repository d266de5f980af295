//! Parquet's key tools in Rust (`parquet-key-management`), an implementation that is not ours, and our key material.
//!
//! Version 0.8 wraps and unwraps with key-encryption keys of 128 bits only; ours have 256, which PyArrow and Spark read
//! (`connectors/cli/tests/table/others.rs`). So its parser reads our material here, and what its rules say is done with the key
//! that they did not foresee; its own unwrapping is shown to stop at nothing but the length of the key.

use std::sync::Mutex;

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::encryption::decrypt::{FileDecryptionProperties, KeyRetriever};
use parquet::errors::ParquetError;
use parquet_key_management::crypto_factory::{CryptoFactory, DecryptionConfiguration};
use parquet_key_management::errors::{Error, Result as ToolsResult};
use parquet_key_management::key_material::KeyMaterial;
use parquet_key_management::kms::{KmsClient, KmsClientRef, KmsConnectionConfig, KmsConnectionInfo};

use super::surgery::{Kek, footer_material};
use super::*;
use crate::keys::{EncryptionContext, Envelope, KeyService as _};
use crate::policy::FOOTER_LABEL;
use crate::table::footer::column_material;

/// What a user of the tools writes: a client of their key service, which takes what our envelopes say to it.
struct Client {
    kms: Arc<MemoryKms>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl KmsClient for Client {
    fn wrap_key(&self, _: &[u8], _: &str) -> ToolsResult<String> {
        Err(Error::General("nothing is written".to_owned()))
    }

    fn unwrap_key(&self, wrapped: &str, master_key: &str) -> ToolsResult<Vec<u8>> {
        let external = |error: String| Error::General(error);
        let envelope = Envelope::from_text(wrapped).map_err(|error| external(error.to_string()))?;
        assert_eq!(master_key, envelope.arn);
        self.asked.lock().unwrap().push(master_key.to_owned());
        let context = EncryptionContext::for_data_key(&envelope.dataset, &envelope.key_name, &envelope.acl);
        let unwrap = self.kms.unwrap(&envelope.arn, &envelope.wrapped, &context);
        // Reading is not asynchronous there, and this key service never waits.
        let key = at_once(unwrap).map_err(|error| external(error.to_string()))?;
        Ok(key.expose().to_vec())
    }
}

/// The answer of a future that does not wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// A reader of PKMT1 by the words of "Key management tools": the material as the library parses it, its client of the key
/// service, AES-GCM with the bytes of the key-encryption key's id as additional data.
struct ByTheRules(Client);

impl KeyRetriever for ByTheRules {
    fn retrieve_key(&self, material: &[u8]) -> Result<Vec<u8>, ParquetError> {
        let wrong = |what: &str| ParquetError::General(what.to_owned());
        let text = std::str::from_utf8(material).map_err(|_| wrong("no text"))?;
        let material = KeyMaterial::deserialize(text)?;
        assert!(material.double_wrapping && material.internal_storage);
        let id = material.key_encryption_key_id.ok_or_else(|| wrong("no id"))?;
        let id = STANDARD.decode(id).map_err(|_| wrong("no base64"))?;
        let wrapped = material.wrapped_kek.ok_or_else(|| wrong("no key"))?;
        let kek = self.0.unwrap_key(&wrapped, &material.master_key_id)?;
        let bytes = STANDARD.decode(material.wrapped_dek).map_err(|_| wrong("no base64"))?;
        let (nonce, text) = bytes.split_first_chunk::<12>().ok_or_else(|| wrong("too short"))?;
        let payload = Payload { msg: text, aad: &id };
        let cipher = Aes256Gcm::new_from_slice(&kek).map_err(|_| wrong("no key"))?;
        cipher
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| wrong("another key"))
    }
}

fn client(bench: &Bench) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let client = Client {
        kms: bench.kms.clone(),
        asked: asked.clone(),
    };
    (client, asked)
}

fn all_rows(bench: &Bench, file: &Bytes, columns: &[&str]) -> parquet::errors::Result<RecordBatch> {
    let retriever = Arc::new(ByTheRules(client(bench).0));
    let properties = FileDecryptionProperties::with_key_retriever(retriever).build()?;
    let options = ArrowReaderOptions::new().with_file_decryption_properties(properties);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options)?;
    let schema = builder.parquet_schema();
    let mask = parquet::arrow::ProjectionMask::columns(schema, columns.iter().copied());
    let builder = builder.with_projection(mask);
    let schema = builder.schema().clone();
    let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
    let schema = batches.first().map_or(schema, RecordBatch::schema);
    Ok(arrow::compute::concat_batches(&schema, &batches)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_files_open_by_the_rules_of_the_key_tools_with_either_footer() {
    for footer in ["", ", footer: signed-plaintext"] {
        let bench = Bench::new(&POLICY.replace("acl: ops }\n", &format!("acl: ops{footer} }}\n")));
        let file = bench.file().await;
        let batch = all_rows(&bench, &file, &["id", "card", "items"]).unwrap();
        assert_eq!(batch.num_rows(), 200);
        assert_eq!(
            texts(&batch, "card"),
            (0..200).map(|n| Some(card(n))).collect::<Vec<_>>()
        );
        assert_eq!(serials(&batch)[7], Some("serial-7".to_owned()));

        // A key that is refused takes its column, and no other.
        bench.kms.set_unusable(PII, true);
        assert!(all_rows(&bench, &file, &["card"]).is_err());
        assert_eq!(all_rows(&bench, &file, &["id"]).unwrap().num_rows(), 200);
        bench.kms.set_unusable(PII, false);

        // A changed byte of a page, and of the footer.
        for at in [60, file.len() - 40] {
            let mut changed = file.to_vec();
            changed[at] ^= 1;
            assert!(
                all_rows(&bench, &changed.into(), &["_partition", "id"]).is_err(),
                "{at}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_key_material_is_read_by_the_rules_of_others_and_gives_the_same_keys() {
    let bench = Bench::new(POLICY);
    let file = bench.file().await;
    let footer = footer_material(&file).await;
    let parsed = KeyMaterial::deserialize(std::str::from_utf8(&footer).unwrap()).unwrap();
    assert!(parsed.is_footer_key && parsed.internal_storage && parsed.double_wrapping);
    assert_eq!(parsed.key_material_type, "PKMT1");
    assert_eq!(parsed.kms_instance_id.as_deref(), Some("DEFAULT"));
    assert_eq!(parsed.kms_instance_url.as_deref(), Some("DEFAULT"));
    assert!(parsed.key_reference.is_none() && parsed.key_encryption_key_id.is_some());

    let by_the_rules = ByTheRules(client(&bench).0);
    let ours = Kek::of(&bench, &footer).await.unwrap(FOOTER_LABEL, &footer);
    assert_eq!(by_the_rules.retrieve_key(&footer).unwrap(), ours.expose());

    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let table = bench.reader().open(Arc::new(file.clone()), PATH, asking).await.unwrap();
    for (n, leaf) in table.leaves().iter().enumerate() {
        let (material, own) = column_material(table.metadata.metadata(), n).unwrap().unwrap();
        let parsed = KeyMaterial::deserialize(std::str::from_utf8(&material).unwrap()).unwrap();
        assert!(!parsed.is_footer_key && parsed.double_wrapping && parsed.internal_storage);
        assert!(parsed.kms_instance_id.is_none() && parsed.kms_instance_url.is_none());
        assert_eq!(parsed.master_key_id, own.master_key);
        let label = leaf.label.as_deref().unwrap_or(FOOTER_LABEL);
        let ours = Kek::of(&bench, &material).await.unwrap(label, &material);
        assert_eq!(by_the_rules.retrieve_key(&material).unwrap(), ours.expose(), "{label}");
    }
    assert!(ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).is_err());

    // Its own unwrapper asks the key service as it should, with what our material says, and then has no use for 256 bits. Once
    // this fails, let it open the files by itself.
    let (_, asked) = client(&bench);
    let (kms, for_clients) = (bench.kms.clone(), asked.clone());
    let factory = move |_: &KmsConnectionInfo| -> ToolsResult<KmsClientRef> {
        Ok(Arc::new(Client {
            kms: kms.clone(),
            asked: for_clients.clone(),
        }))
    };
    let connection = Arc::new(KmsConnectionConfig::default());
    let configuration = DecryptionConfiguration::builder().build();
    let tools = CryptoFactory::new(factory);
    let unwrapper = tools.key_unwrapper(connection, configuration).unwrap();
    let error = unwrapper.unwrap_key(&footer).unwrap_err().to_string();
    assert!(
        error.contains("Error creating AES key from key encryption key bytes"),
        "{error}"
    );
    assert_eq!(*asked.lock().unwrap(), [parsed.master_key_id]);
}
