//! Workers that end, are silent, or cannot write down what they decide.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sealflow::flow::enclave::{EnclaveError, EnclaveWorker as _};
use sealflow::keys::RsaBits;
use sealflow_client::PrivateKey;
use sealflow_enclave_host::{Cause, StartError, Started, Starter, Supervisor};
use sealflow_enclave_protocol::frame::Kind;
use sealflow_enclave_protocol::link::read_frame;
use sealflow_enclave_protocol::message::Credentials;
use tokio::io::AsyncWriteExt as _;

use crate::bench::{Bench, HostSide, IMAGE};
use crate::readers::read_job;

#[tokio::test(flavor = "multi_thread")]
async fn while_decisions_cannot_be_written_down_batches_fail_at_once_and_then_a_new_worker_goes_on() {
    let bench = Arc::new(Bench::new().await);
    let side = Arc::new(HostSide::default());
    let starter = Arc::new(InProcess {
        bench: bench.clone(),
        starts: AtomicUsize::new(0),
        fail_first: 0,
        kill: tokio::sync::broadcast::channel(4).0,
        side: side.clone(),
    });
    let supervisor = Supervisor::start(starter, 4);
    supervisor.ready().await;
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    assert!(supervisor.reseal(bench.batch(&session, &cards)).await.is_ok());
    let key = PrivateKey::generate(RsaBits::Rsa2048)
        .unwrap()
        .public()
        .unwrap()
        .to_json();
    side.is_full.store(true, Ordering::Relaxed);
    // Refused readers are written down as well.
    let read = supervisor.read(&read_job("sf1.x", &key, "a.b.c")).await;
    assert!(matches!(read, Err(EnclaveError::Unrecorded { .. })), "{read:?}");
    // No batch waits for a worker that cannot come, and the next one that does is taken.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    side.is_full.store(false, Ordering::Relaxed);
    while let Err(error) = supervisor.reseal(bench.batch(&session, &cards)).await {
        assert!(tokio::time::Instant::now() < until, "{error}");
        let is_told = matches!(
            error,
            EnclaveError::Unrecorded { .. } | EnclaveError::Unavailable { .. }
        );
        assert!(is_told, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(supervisor.known().unwrap().starts, 2);
}

/// Starts workers in this process; the first ones end at once.
#[derive(Debug)]
struct InProcess {
    bench: Arc<Bench>,
    starts: AtomicUsize,
    fail_first: usize,
    kill: tokio::sync::broadcast::Sender<()>,
    side: Arc<HostSide>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bench")
    }
}

#[async_trait]
impl Starter for InProcess {
    async fn start(&self) -> Result<Started, StartError> {
        let n = self.starts.fetch_add(1, Ordering::Relaxed);
        if n < self.fail_first {
            return Err(StartError::Launch("no such image".to_owned()));
        }
        let (mut theirs, _) = self.bench.worker(self.bench.trusted(), IMAGE);
        let (channel, mut ours) = tokio::io::duplex(1 << 16);
        let mut kill = self.kill.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                _ = kill.recv() => {}
            }
        });
        Ok(Started {
            connection: self.bench.connected_with(channel, self.side.clone()).await?,
            process: Box::new(()),
        })
    }

    async fn credentials(&self) -> Option<Credentials> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_is_started_again_and_no_batch_is_answered_wrongly() {
    let bench = Arc::new(Bench::new().await);
    let (kill, _) = tokio::sync::broadcast::channel(4);
    let starter = Arc::new(InProcess {
        bench: bench.clone(),
        starts: AtomicUsize::new(0),
        fail_first: 2,
        kill: kill.clone(),
        side: Arc::default(),
    });
    let supervisor = Supervisor::start(starter.clone(), 4);
    assert!(!supervisor.is_ready() && supervisor.known().is_err());
    let mut session = bench.session().await;
    let cards: Vec<String> = (0..2_000)
        .map(|n| session.seal("card", n.to_string().as_bytes()).unwrap())
        .collect();
    // It waits for the first worker.
    assert!(supervisor.reseal(bench.batch(&session, &cards)).await.is_ok());
    assert_eq!(
        (
            supervisor.known().unwrap().starts,
            starter.starts.load(Ordering::Relaxed)
        ),
        (1, 3)
    );
    let (mut good, mut kills) = (0, 0);
    let until = tokio::time::Instant::now() + Duration::from_secs(120);
    while good < 40 {
        assert!(tokio::time::Instant::now() < until, "{good} after {kills} kills");
        if good >= kills * 8 + 3 {
            kills += 1;
            let _ = kill.send(());
        }
        match supervisor.reseal(bench.batch(&session, &cards)).await {
            Ok(sealed) => {
                assert_eq!((sealed[0].values.view().len(), sealed[0].refused.len()), (2_000, 0));
                good += 1;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    assert!(supervisor.known().unwrap().starts >= 5);
}

/// The first start never comes to an end; later ones are workers that answer until they are to be silent.
#[derive(Debug)]
struct Silent {
    bench: Arc<Bench>,
    starts: AtomicUsize,
}

#[async_trait]
impl Starter for Silent {
    async fn start(&self) -> Result<Started, StartError> {
        if self.starts.fetch_add(1, Ordering::Relaxed) == 0 {
            return std::future::pending().await;
        }
        let (theirs, _) = self.bench.worker(self.bench.trusted(), IMAGE);
        let (channel, ours) = tokio::io::duplex(1 << 16);
        let ((mut from_host, mut to_host), (mut from_worker, mut to_worker)) =
            (tokio::io::split(ours), tokio::io::split(theirs));
        tokio::spawn(async move { tokio::io::copy(&mut from_worker, &mut to_host).await });
        tokio::spawn(async move {
            while let Ok(Some(frame)) = read_frame(&mut from_host).await {
                // It hears everything but how it is.
                if frame.kind != Kind::Status {
                    to_worker.write_all(&frame.header().unwrap()).await.unwrap();
                    to_worker.write_all(&frame.body).await.unwrap();
                }
            }
        });
        Ok(Started {
            connection: self.bench.connected(channel).await?,
            process: Box::new(()),
        })
    }

    async fn credentials(&self) -> Option<Credentials> {
        None
    }
}

/// Time passes as soon as everybody waits for it.
#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_is_given_up_and_the_next_one_is_started() {
    let starter = Arc::new(Silent {
        bench: Arc::new(Bench::new().await),
        starts: AtomicUsize::new(0),
    });
    let began = tokio::time::Instant::now();
    let supervisor = Supervisor::start(starter.clone(), 4);
    while supervisor.why_not().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let why = supervisor.why_not().unwrap();
    assert!(
        why.contains("within 60 seconds") && supervisor.cause() == Some(Cause::Away),
        "{why}"
    );
    assert!(began.elapsed() < Duration::from_secs(70), "{:?}", began.elapsed());
    supervisor.ready().await;
    assert_eq!(supervisor.known().unwrap().starts, 1);
    // It is asked how it is, does not say, and is not waited for.
    while supervisor.known().is_ok_and(|known| known.starts == 1) {
        assert!(
            began.elapsed() < Duration::from_secs(3_600),
            "it is still believed to live"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    supervisor.ready().await;
    assert!(starter.starts.load(Ordering::Relaxed) >= 3);
}
