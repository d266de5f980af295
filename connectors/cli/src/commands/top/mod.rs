//! `sealflow top`: what running pipelines do, from their admin ports. Reads only, and goes on when a port goes away.

mod draw;
mod scrape;
mod view;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::Full;
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use scrape::Snapshot;
use sealflow::units::Span;
use view::{Port, view};

use crate::failure::{Exit, Failure, Result};
use crate::http;
use crate::term::{OutputFormat, Style, say, say_json};

/// The most that an admin port may answer: some 50,000 partitions.
const MAX_ANSWER: usize = 8 << 20;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Watch running pipelines: throughput, lag, keys, cache, errors
///
/// Asks the admin ports of pipelines and shows, per pipeline and partition, what they do. q quits. In a pipe, and for
/// scripts: `--once`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Admin port of a pipeline; may be repeated
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:9464",
        env = "SEALFLOW_ADMIN",
        hide_env_values = true
    )]
    #[arg(value_delimiter = ',')]
    admin: Vec<String>,
    /// Time between two looks
    #[arg(long, value_name = "SPAN", default_value = "1s")]
    interval: Span,
    /// Look twice, one interval apart, print, and end; exit code 69 if a port does not answer
    #[arg(long)]
    once: bool,
    /// With --once: look only once and print nothing, for health checks
    #[arg(long, requires = "once")]
    quiet: bool,
    /// How `--once` prints
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&args.interval.0) {
        return Err(Failure::usage(
            "--interval: must be between 100ms and 1h",
            "give another span",
        ));
    }
    let watch = Watch::new(&args)?;
    if args.once {
        return once(&args, watch).await;
    }
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "standard input and output are not both a terminal",
            "use --once to print what is seen now",
        ));
    }
    live(args.interval.0, watch).await
}

async fn once(args: &Args, mut watch: Watch) -> Result<ExitCode> {
    watch.look().await;
    if !args.quiet {
        tokio::time::sleep(args.interval.0).await;
        watch.look().await;
        let pipelines = view(&watch.ports);
        match args.output {
            OutputFormat::Json => say_json(&pipelines),
            OutputFormat::Text => say(draw::lines(&pipelines).join("\n")),
        }
    }
    if watch.ports.iter().all(Port::is_there) {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(Exit::Unavailable as u8))
}

/// Looks in the background; the keyboard and the screen are on a thread of their own.
async fn live(interval: Duration, watch: Watch) -> Result<ExitCode> {
    let shown = Arc::new(Mutex::new(watch.ports.clone()));
    let looking = tokio::spawn({
        let shown = Arc::clone(&shown);
        let mut watch = watch;
        async move {
            loop {
                watch.look().await;
                shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone_from(&watch.ports);
                tokio::time::sleep(interval).await;
            }
        }
    });
    let screen = tokio::task::spawn_blocking(move || {
        let mut terminal = ratatui::try_init()?;
        let ended = show(&mut terminal, &shown);
        ratatui::restore();
        ended
    });
    let ended = screen.await;
    looking.abort();
    match ended {
        Ok(Ok(())) => Ok(ExitCode::SUCCESS),
        Ok(Err(error)) => Err(Failure::new(
            Exit::Io,
            format_args!("cannot use the terminal: {error}"),
            "use --once to print what is seen now",
        )),
        // The panic hook has said where.
        Err(_) => Ok(ExitCode::from(Exit::Internal as u8)),
    }
}

fn show(terminal: &mut ratatui::DefaultTerminal, shown: &Mutex<Vec<Port>>) -> std::io::Result<()> {
    let coloured = Style::of_stdout().is_coloured();
    loop {
        let pipelines = view(&shown.lock().unwrap_or_else(PoisonError::into_inner));
        terminal.draw(|frame| draw::draw(frame, &pipelines, coloured))?;
        if event::poll(Duration::from_millis(250))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
    }
}

/// The ports that are looked at.
struct Watch {
    client: Client<HttpConnector, Full<Bytes>>,
    ports: Vec<Port>,
    started: Instant,
}

impl Watch {
    fn new(args: &Args) -> Result<Self> {
        for admin in &args.admin {
            let uri: Option<hyper::Uri> = admin.parse().ok();
            if !uri.is_some_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some()) {
                let message = format!("--admin: {admin} is not the address of an admin port");
                return Err(Failure::usage(message, "write http://HOST:PORT"));
            }
        }
        Ok(Self {
            client: http::plain(),
            ports: args.admin.iter().map(|admin| Port::new(admin)).collect(),
            started: Instant::now(),
        })
    }

    /// Asks all of them at once.
    async fn look(&mut self) {
        let client = &self.client;
        let answers = join_all(self.ports.iter().map(|port| ask(client, &port.admin))).await;
        let at = self.started.elapsed();
        for (port, answer) in self.ports.iter_mut().zip(answers) {
            port.update(at, answer);
        }
    }
}

async fn ask(client: &Client<HttpConnector, Full<Bytes>>, admin: &str) -> Result<Snapshot, String> {
    let request = Request::get(format!("{}/metrics", admin.trim_end_matches('/'))).body(Bytes::new());
    let request = request.map_err(|error| error.to_string())?;
    let answer = http::send(client, request, MAX_ANSWER, PATIENCE).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("answers {}", answer.status()));
    }
    Ok(scrape::read(&String::from_utf8_lossy(answer.body())))
}
