//! Two requests of Kafka's protocol that librdkafka's Rust binding does not offer: who should lead a partition, and
//! that it now shall. (Kafka's own tools for it are in a jar that the broker does not need.)

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const ALTER_PARTITION_REASSIGNMENTS: i16 = 45;
const ELECT_LEADERS: i16 = 43;
const TIMEOUT: Duration = Duration::from_secs(10);
const LARGEST_ANSWER: usize = 1 << 20;
/// What brokers say when the leader is who was asked for already.
const ELECTION_NOT_NEEDED: i16 = 84;

/// Makes the first of `replicas` (the partition's replicas in a new order) its preferred leader, and has it elected.
/// Any broker passes both on to the controller.
pub(crate) fn prefer(broker: &str, topic: &str, partition: i32, replicas: &[i32]) -> io::Result<()> {
    let mut body = Vec::new();
    put_i32(&mut body, 10_000);
    put_length(&mut body, 1);
    put_string(&mut body, topic);
    put_length(&mut body, 1);
    put_i32(&mut body, partition);
    put_length(&mut body, replicas.len());
    for replica in replicas {
        put_i32(&mut body, *replica);
    }
    // No tagged fields: of the partition, of the topic, of the request.
    body.extend([0, 0, 0]);
    let answer = call(broker, ALTER_PARTITION_REASSIGNMENTS, 0, &body)?;
    check(&answer, "reassignment")?;

    let mut body = vec![0]; // the preferred one
    put_length(&mut body, 1);
    put_string(&mut body, topic);
    put_length(&mut body, 1);
    put_i32(&mut body, partition);
    body.push(0);
    put_i32(&mut body, 10_000);
    body.push(0);
    let answer = call(broker, ELECT_LEADERS, 2, &body)?;
    check(&answer, "election")
}

/// Sends one request with header version 2, and returns the body of the answer (header version 1).
fn call(broker: &str, api: i16, version: i16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut request = Vec::new();
    request.extend(api.to_be_bytes());
    request.extend(version.to_be_bytes());
    put_i32(&mut request, 1);
    request.extend((-1_i16).to_be_bytes()); // no client id
    request.push(0);
    request.extend(body);
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if !(5..=LARGEST_ANSWER).contains(&length) {
        return Err(io::Error::other(format!("an answer of {length} bytes")));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    // Correlation id and tagged fields.
    Ok(answer.split_off(5))
}

/// Both answers begin with a throttle time and an error code for the whole. What is said of the partition is not
/// read: whether its leader changed is seen in the metadata.
fn check(answer: &[u8], what: &str) -> io::Result<()> {
    let code = answer.get(4..6).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
    match code {
        Some(0 | ELECTION_NOT_NEEDED) => Ok(()),
        code => Err(io::Error::other(format!("{what}: error code {code:?}"))),
    }
}

fn put_i32(out: &mut Vec<u8>, value: i32) {
    out.extend(value.to_be_bytes());
}

/// A compact length: one more than the count, as a varint.
fn put_length(out: &mut Vec<u8>, count: usize) {
    let mut value = count + 1;
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}
