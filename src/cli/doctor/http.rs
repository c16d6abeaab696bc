//! One GET from this machine's own status page.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long the page may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;

/// The body of `path` as JSON, whatever the status says.
pub(super) async fn get_json(address: SocketAddr, path: &str) -> anyhow::Result<serde_json::Value> {
    let work = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer =
        timeout(PATIENCE, work).await.map_err(|_| anyhow::anyhow!("no answer within {} s", PATIENCE.as_secs()))??;
    let body = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .and_then(|end| answer.get(end + 4..))
        .ok_or_else(|| anyhow::anyhow!("the answer is not HTTP"))?;
    Ok(serde_json::from_slice(body)?)
}
