//! Byte streams between host and worker: Unix sockets, `AF_VSOCK`, and the Unix sockets by which emulators stand in for it. Carries
//! bytes and knows nothing of what they mean.
//!
//! A write takes at most [`LARGEST_WRITE`] bytes: larger ones stall for ever under vhost-device-vsock, and gain nothing on AWS.

use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
#[cfg(feature = "nitro")]
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

/// Most bytes that one write takes.
pub const LARGEST_WRITE: usize = 32 * 1024;
/// Context id of the parent instance on AWS. Under vhost-device-vsock it is 2.
pub const PARENT_CID: u32 = 3;
/// An emulator that does not answer within this time is treated as absent.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Longest line of a handshake, `OK` and a port of ten digits, with its end.
const LONGEST_ANSWER: usize = 14;

/// Where the other side is, or where one listens. As text: `unix:PATH`, `vsock:CID:PORT`, `hybrid:PATH:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Endpoint {
    /// A Unix socket.
    Unix {
        /// Its file.
        path: PathBuf,
    },
    /// A port of an enclave, or of its parent ([`PARENT_CID`]).
    Vsock {
        /// Context id; to listen, -1 as `u32` is any.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// A port of a virtual machine whose vsock an emulator maps to Unix sockets, as Firecracker and vhost-device-vsock do:
    /// connections into it begin with a line `CONNECT PORT` on one socket, those out of it arrive at the socket `PATH_PORT`.
    Hybrid {
        /// The emulator's socket.
        path: PathBuf,
        /// Port.
        port: u32,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Channel(Stream);

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    #[cfg(feature = "nitro")]
    Vsock(VsockStream),
}

/// Waits for connections. Its socket's file, if it has one, goes with it.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Unix {
        listener: UnixListener,
        path: PathBuf,
    },
    #[cfg(feature = "nitro")]
    Vsock(VsockListener),
}

/// What went wrong with a channel, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// Nobody answers.
    #[error("nobody answers at {endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the operating system says.
        source: io::Error,
    },
    /// Another answer than the emulator's convention has.
    #[error("what answers at {endpoint} is no emulated vsock, or nobody listens at that port of the virtual machine")]
    Handshake {
        /// Where.
        endpoint: Endpoint,
    },
    /// Listening is not possible.
    #[error("listening at {endpoint} is not possible: {source}")]
    Listen {
        /// Where.
        endpoint: Endpoint,
        /// What the operating system says.
        source: io::Error,
    },
    /// A connection was lost before it was one.
    #[error("no connection was accepted at {endpoint}: {source}")]
    Accept {
        /// Where.
        endpoint: Endpoint,
        /// What the operating system says.
        source: io::Error,
    },
    /// This build has no vsock.
    #[error("{endpoint} needs a build with the feature `nitro`")]
    NoVsock {
        /// Where.
        endpoint: Endpoint,
    },
}

impl ChannelError {
    /// Whether trying again later may help: the other side may just not be there yet.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Handshake { .. } | Self::Accept { .. } => true,
            Self::Listen { .. } | Self::NoVsock { .. } => false,
        }
    }
}

impl Channel {
    /// Connects.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, ChannelError> {
        let failed = |source| ChannelError::Connect {
            endpoint: endpoint.clone(),
            source,
        };
        match endpoint {
            Endpoint::Unix { path } => Ok(UnixStream::connect(path).await.map_err(failed)?.into()),
            #[cfg(feature = "nitro")]
            Endpoint::Vsock { cid, port } => {
                let stream = VsockStream::connect(VsockAddr::new(*cid, *port))
                    .await
                    .map_err(failed)?;
                Ok(Self(Stream::Vsock(stream)))
            }
            #[cfg(not(feature = "nitro"))]
            Endpoint::Vsock { .. } => Err(ChannelError::NoVsock {
                endpoint: endpoint.clone(),
            }),
            Endpoint::Hybrid { path, port } => {
                let mut stream = UnixStream::connect(path).await.map_err(failed)?;
                match timeout(HANDSHAKE, shake_hands(&mut stream, *port)).await {
                    Ok(Ok(true)) => Ok(stream.into()),
                    Ok(Ok(false)) => Err(ChannelError::Handshake {
                        endpoint: endpoint.clone(),
                    }),
                    Ok(Err(source)) => Err(failed(source)),
                    Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
                }
            }
        }
    }
}

/// Asks an emulator for a port; whether it says that this is a connection now.
async fn shake_hands(stream: &mut UnixStream, port: u32) -> io::Result<bool> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is the worker's.
    while answer.len() < LONGEST_ANSWER && !answer.ends_with(b"\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            // That is how emulators say that nobody listens.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(answer.starts_with(b"OK ") && answer.ends_with(b"\n"))
}

impl Listener {
    /// Listens. A socket's file is readable and writable by its owner alone; one that a process left behind is replaced, one that
    /// somebody listens at is not.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub async fn bind(endpoint: &Endpoint) -> Result<Self, ChannelError> {
        let inner = match endpoint {
            Endpoint::Unix { path } => bind_unix(path).await,
            Endpoint::Hybrid { path, port } => bind_unix(&port_socket(path, *port)).await,
            #[cfg(feature = "nitro")]
            Endpoint::Vsock { cid, port } => VsockListener::bind(VsockAddr::new(*cid, *port)).map(Inner::Vsock),
            #[cfg(not(feature = "nitro"))]
            Endpoint::Vsock { .. } => {
                return Err(ChannelError::NoVsock {
                    endpoint: endpoint.clone(),
                });
            }
        };
        match inner {
            Ok(inner) => Ok(Self {
                endpoint: endpoint.clone(),
                inner,
            }),
            Err(source) => Err(ChannelError::Listen {
                endpoint: endpoint.clone(),
                source,
            }),
        }
    }

    /// The next connection. Losing the future loses none.
    ///
    /// # Errors
    /// [`ChannelError::Accept`]
    pub async fn accept(&self) -> Result<Channel, ChannelError> {
        let accepted = match &self.inner {
            Inner::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| stream.into()),
            #[cfg(feature = "nitro")]
            Inner::Vsock(listener) => {
                let accepted = std::future::poll_fn(|context| listener.poll_accept(context)).await;
                accepted.map(|(stream, _)| Channel(Stream::Vsock(stream)))
            }
        };
        accepted.map_err(|source| ChannelError::Accept {
            endpoint: self.endpoint.clone(),
            source,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        match &self.inner {
            // A file that stays is replaced by the next listener.
            Inner::Unix { path, .. } => drop(std::fs::remove_file(path)),
            #[cfg(feature = "nitro")]
            Inner::Vsock(_) => {}
        }
    }
}

async fn bind_unix(path: &Path) -> io::Result<Inner> {
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
    {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = UnixListener::bind(path)?;
    let permissions = std::fs::Permissions::from_mode(0o600);
    if let Err(error) = std::fs::set_permissions(path, permissions) {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(Inner::Unix {
        listener,
        path: path.to_owned(),
    })
}

/// Where connections out of the virtual machine arrive.
fn port_socket(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

impl From<UnixStream> for Channel {
    fn from(stream: UnixStream) -> Self {
        Self(Stream::Unix(stream))
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            #[cfg(feature = "nitro")]
            Stream::Vsock(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let buffer = &buffer[..buffer.len().min(LARGEST_WRITE)];
        match &mut self.get_mut().0 {
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, buffer),
            #[cfg(feature = "nitro")]
            Stream::Vsock(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
            #[cfg(feature = "nitro")]
            Stream::Vsock(stream) => AsyncWrite::poll_flush(Pin::new(stream), context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(feature = "nitro")]
            Stream::Vsock(stream) => AsyncWrite::poll_shutdown(Pin::new(stream), context),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "hybrid:{}:{port}", path.display()),
        }
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

/// Text that is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no endpoint: {text:?}; one of unix:PATH, vsock:CID:PORT, hybrid:PATH:PORT")]
pub struct EndpointError {
    /// The text.
    pub text: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        parse(text).ok_or_else(|| EndpointError { text: text.to_owned() })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

fn parse(text: &str) -> Option<Endpoint> {
    let (kind, rest) = text.split_once(':')?;
    let path = |path: &str| {
        if path.is_empty() {
            None
        } else {
            Some(PathBuf::from(path))
        }
    };
    match kind {
        "unix" => Some(Endpoint::Unix { path: path(rest)? }),
        "vsock" => {
            let (cid, port) = rest.split_once(':')?;
            Some(Endpoint::Vsock {
                cid: number(cid)?,
                port: number(port)?,
            })
        }
        "hybrid" => {
            let (file, port) = rest.rsplit_once(':')?;
            Some(Endpoint::Hybrid {
                path: path(file)?,
                port: number(port)?,
            })
        }
        _ => None,
    }
}

/// Digits alone: `parse` takes a plus sign too.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unix(folder: &tempfile::TempDir) -> Endpoint {
        Endpoint::Unix {
            path: folder.path().join("s"),
        }
    }

    #[tokio::test]
    async fn what_one_side_writes_the_other_reads() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&unix(&folder)).await.unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let client = tokio::spawn(async move {
            let mut channel = Channel::connect(&unix(&folder)).await.unwrap();
            channel.write_all(&sent).await.unwrap();
            channel.shutdown().await.unwrap();
            let mut answer = Vec::new();
            channel.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut channel = listener.accept().await.unwrap();
        let mut received = Vec::new();
        channel.read_to_end(&mut received).await.unwrap();
        channel.write_all(b"done").await.unwrap();
        drop(channel);
        assert!(received == expected);
        assert_eq!(client.await.unwrap(), b"done");
    }

    #[tokio::test]
    async fn no_write_takes_more_than_32_kib() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut channel = Channel::from(one);
        assert_eq!(channel.write(&[0; 3 * LARGEST_WRITE]).await.unwrap(), LARGEST_WRITE);
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&unix(&folder)).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = Listener::bind(&unix(&folder)).await.unwrap_err();
        assert!(
            matches!(&error, ChannelError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
            "{error}"
        );
        assert!(!error.is_retryable());
        drop(listener);
        assert!(!path.exists());
        // What is no socket is nobody's to remove.
        std::fs::write(&path, "text").unwrap();
        Listener::bind(&unix(&folder)).await.unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
    }

    /// An emulator that answers one connection so.
    async fn connect_to(answer: &'static [u8]) -> Result<Vec<u8>, ChannelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm");
        let listener = UnixListener::bind(&path).unwrap();
        let emulator = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 5005\n");
            stream.write_all(answer).await.unwrap();
        });
        let connected = Channel::connect(&Endpoint::Hybrid { path, port: 5_005 }).await;
        emulator.await.unwrap();
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn an_emulated_vsock_is_asked_for_a_port_and_what_follows_its_answer_is_the_workers() {
        assert_eq!(connect_to(b"OK 1073741824\nhello\n").await.unwrap(), b"hello\n");
        for refused in [&b""[..], b"NO\n", b"OK", b"OK 12345678901234567890\n"] {
            let error = connect_to(refused).await.unwrap_err();
            assert!(matches!(error, ChannelError::Handshake { .. }), "{error}");
            assert!(error.is_retryable());
        }
    }

    #[tokio::test]
    async fn connections_out_of_an_emulated_machine_arrive_at_a_socket_of_their_port() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&Endpoint::Hybrid {
            path: folder.path().join("vm"),
            port: 9_000,
        })
        .await
        .unwrap();
        let mut emulator = UnixStream::connect(folder.path().join("vm_9000")).await.unwrap();
        let mut channel = listener.accept().await.unwrap();
        emulator.write_all(b"x").await.unwrap();
        assert_eq!(channel.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn where_nobody_listens_the_error_says_where() {
        let error = Channel::connect(&Endpoint::Unix {
            path: "/nonexistent/s".into(),
        })
        .await
        .unwrap_err();
        assert!(
            error.to_string().starts_with("nobody answers at unix:/nonexistent/s: "),
            "{error}"
        );
    }

    #[test]
    fn endpoints_are_read_as_they_are_written() {
        for text in [
            "unix:/run/sealflow/worker",
            "vsock:16:5005",
            "vsock:4294967295:1",
            "hybrid:/run/a:b:5005",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
            assert_eq!(
                serde_json::from_str::<Endpoint>(&serde_json::to_string(&endpoint).unwrap()).unwrap(),
                endpoint
            );
        }
        for text in [
            "",
            "unix:",
            "tcp:localhost:1",
            "vsock:16",
            "vsock:+1:2",
            "vsock::1",
            "vsock:1:99999999999",
            "hybrid::1",
            "hybrid:/a",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError { text: text.to_owned() }));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_endpoint_or_refused(text in "(unix|vsock|hybrid|)[:0-9a-z/]{0,20}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>(), Ok(endpoint));
            }
        }
    }
}
