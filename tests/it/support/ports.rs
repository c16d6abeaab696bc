//! Free ports that nobody else of the same test run takes.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

/// Below the range from which the kernel picks ports for outgoing connections, so that a server can come back on
/// its port after a restart.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Claims a port of loopback until this process ends.
pub(crate) fn free_port() -> u16 {
    static CLAIMED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join("hilum-test-ports");
    fs_err::create_dir_all(&folder).expect("a folder for claimed ports");
    let mut claimed = CLAIMED.lock().expect("no panic holds it");
    let mut port = FIRST + u16::try_from(std::process::id() % u32::from(LAST - FIRST)).expect("within the range");
    for _ in FIRST..=LAST {
        port = if port == LAST { FIRST } else { port + 1 };
        let Ok(file) = File::options().create(true).append(true).open(folder.join(port.to_string())) else { continue };
        if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            claimed.push(file);
            return port;
        }
    }
    panic!("no free port between {FIRST} and {LAST}");
}
