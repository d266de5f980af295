//! What others see of a running pipeline: `sealflow top`, and an OpenTelemetry collector.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sealflow_testbed::{Kafka, Message, Site, free_port};
use serde_json::Value;

use crate::support::{Running, binary, create_topics, pipeline, progress, run_to_end, sample_messages};

/// Takes OTLP over HTTP and keeps what was sent.
struct Collector {
    port: u16,
    bodies: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { port, bodies }
    }

    fn has(&self, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// Answers one connection's requests, as long as they come. Heads are kept too.
fn serve(stream: TcpStream, kept: &Mutex<Vec<u8>>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            kept.lock().unwrap().extend(line.as_bytes());
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        kept.lock().unwrap().extend(body);
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        writer.write_all(answer.as_bytes()).unwrap();
    }
}

/// Values that must not leave the pipeline in clear.
fn secrets(value: &[u8]) -> Vec<String> {
    let record: Value = serde_json::from_slice(value).unwrap();
    ["/client_ip", "/user/email", "/user/name"]
        .iter()
        .filter_map(|place| record.pointer(place)?.as_str().map(str::to_owned))
        .collect()
}

#[test]
fn spans_of_a_run_reach_the_collector_with_counts_and_without_a_value() {
    let Some(kafka) = Kafka::shared("spans of a run") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "traced");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let samples = sample_messages(31, 500);
    let messages: Vec<Message> = samples.iter().map(|(_, message)| message.clone()).collect();
    topics.produce("traced", &messages);
    let collector = Collector::start();
    let telemetry = format!(
        "telemetry: {{ otlp: {{ endpoint: \"http://127.0.0.1:{}\", headers: {{ x-api-key: CanaryHeader }} }} }}",
        collector.port
    );
    let file = pipeline(&site, "traced", "seal", &telemetry);
    let log = run_to_end(&site, &file, Duration::from_secs(60));
    let spans = [
        "batch",
        "read",
        "transform",
        "locate",
        "fetch_keys",
        "seal",
        "transaction",
        "produce",
        "commit",
    ];
    for name in spans
        .into_iter()
        .chain(["partitions", "values", "committed", "sealflow.pipeline", "traced-seal"])
    {
        assert!(collector.has(name), "no {name} among the spans:\n{log}");
    }
    assert!(
        collector.has("POST /v1/traces") && collector.has("CanaryHeader"),
        "the header is sent"
    );
    assert!(!log.contains("CanaryHeader"), "and not logged");
    for secret in samples.iter().flat_map(|(sample, _)| secrets(&sample.value)) {
        assert!(!collector.has(&secret), "a span holds {secret}");
    }
}

#[test]
fn a_collector_that_is_away_or_never_answers_costs_spans_and_no_record() {
    let Some(kafka) = Kafka::shared("a collector that is away") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "untraced");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let messages: Vec<Message> = sample_messages(32, 500)
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    topics.produce("untraced", &messages);
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap();
    let telemetry = format!("telemetry: {{ otlp: {{ endpoint: \"http://{endpoint}\", timeout: 60s }} }}");
    let file = pipeline(&site, "untraced", "seal", &telemetry);
    let started = Instant::now();
    let log = run_to_end(&site, &file, Duration::from_secs(60));
    assert!(
        started.elapsed() < Duration::from_secs(40),
        "{:?}:\n{log}",
        started.elapsed()
    );
    assert!(log.contains("did not reach the collector"), "{log}");
    assert_eq!(topics.read_all("untraced.sealed").len(), messages.len());
}

#[test]
fn top_shows_what_a_running_pipeline_does_and_names_a_port_that_is_away() {
    let Some(kafka) = Kafka::shared("top of a running pipeline") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "watched");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let messages: Vec<Message> = sample_messages(33, 500)
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    topics.produce("watched", &messages);
    let (port, away) = (free_port(), free_port());
    let file = pipeline(
        &site,
        "watched",
        "seal",
        &format!("admin: {{ listen: \"127.0.0.1:{port}\" }}"),
    );
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    let until = Instant::now() + Duration::from_secs(60);
    while progress(&topics, "watched.sealed") < 500 {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let urls = [port, away].map(|port| format!("http://127.0.0.1:{port}"));
    let top = |urls: &[String], more: &[&str]| {
        let mut args = vec!["top", "--once", "--interval", "200ms"];
        args.extend(more);
        urls.iter().for_each(|url| args.extend(["--admin", url]));
        let output = site.command(binary(), "pipeline", &args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    // Lag and positions are measured every two seconds.
    let (text, seen) = loop {
        let (code, text) = top(&urls, &["--output", "json"]);
        assert_eq!(code, Some(69), "one does not answer: {text}");
        let seen: Value = serde_json::from_str(&text).unwrap();
        let done = seen[0]["lag"] == 0.0 && seen[0]["partitions"].as_array().is_some_and(|list| list.len() == 6);
        if (done && seen[0]["records_committed"] == 500.0) || Instant::now() > until {
            break (text, seen);
        }
    };
    assert_eq!(seen[0]["phase"], "ready", "{text}");
    assert_eq!(seen[0]["pipeline"], "watched-seal");
    assert_eq!(seen[0]["records_committed"], 500.0);
    assert_eq!(seen[0]["lag"], 0.0);
    assert!(seen[0]["values"].as_f64().unwrap() >= 500.0 && seen[0]["kms_requests"].as_f64().unwrap() >= 1.0);
    assert!(seen[0]["key_age_seconds"].as_f64().unwrap() > 0.0);
    let partitions = seen[0]["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), 6);
    let positions: f64 = partitions.iter().map(|p| p["position"].as_f64().unwrap()).sum();
    assert!((positions - 500.0).abs() < 0.5, "{text}");
    assert_eq!(seen[1]["phase"], "unreachable");
    let (code, text) = top(&urls[..1], &[]);
    assert!(
        code == Some(0) && text.contains("watched-seal") && text.contains("ready"),
        "{text}"
    );
    let (code, text) = top(&urls[..1], &["--quiet"]);
    assert_eq!((code, text.as_str()), (Some(0), ""));
}
