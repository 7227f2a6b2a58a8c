//! `VFIO_USER_VERSION`: what this client proposes and what the server answers.

use serde::{Deserialize, Serialize};
use vfio_user::wire::{VERSION_MAJOR, VERSION_MINOR, Version, limits, take};
use zerocopy::IntoBytes;

use super::stream::MAX_MSG_FDS;
use crate::error::{Error, Result};

/// Page size, of the host as of what is proposed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// Bytes.
    pub pgsize: u64,
}

/// The second socket, for the commands of the server.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct TwinSocket {
    /// It is wanted; in the reply, granted.
    #[serde(default)]
    pub supported: bool,
    /// Which of the reply's descriptors it is.
    #[serde(default, skip_serializing)]
    pub fd_index: usize,
}

/// The members of `capabilities`, in both directions.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Descriptors taken with one message.
    #[serde(default = "default_max_msg_fds")]
    pub max_msg_fds: u32,
    /// Largest data transfer in bytes.
    #[serde(default = "default_max_data_xfer_size")]
    pub max_data_xfer_size: u32,
    /// Page sizes for DMA, a bit each.
    pub pgsizes: Option<u64>,
    /// DMA regions at a time.
    pub max_dma_maps: Option<u64>,
    /// `VFIO_USER_REGION_WRITE_MULTI` may be used.
    #[serde(default)]
    pub write_multiple: bool,
    /// Page size for dirty logging; present if the device can migrate.
    pub migration: Option<Migration>,
    /// The second socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
}

fn default_max_msg_fds() -> u32 {
    limits::DEFAULT_MAX_MSG_FDS
}

fn default_max_data_xfer_size() -> u32 {
    limits::MAX_DATA_XFER_SIZE as u32
}

#[derive(Deserialize, Serialize)]
struct Text {
    capabilities: Option<Capabilities>,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// What the server said of itself.
    pub capabilities: Capabilities,
}

/// The payload of the request.
pub fn proposal(twin_socket: bool) -> Result<Vec<u8>> {
    let pgsize = rustix::param::page_size() as u64;
    let capabilities = Capabilities {
        max_msg_fds: MAX_MSG_FDS as u32,
        max_data_xfer_size: default_max_data_xfer_size(),
        pgsizes: Some(pgsize),
        max_dma_maps: Some(limits::MAX_DMA_MAPS),
        write_multiple: true,
        migration: Some(Migration { pgsize }),
        twin_socket: twin_socket.then_some(TwinSocket { supported: true, fd_index: 0 }),
    };
    let mut payload = Version { major: VERSION_MAJOR, minor: VERSION_MINOR }.as_bytes().to_vec();
    let text = Text { capabilities: Some(capabilities) };
    serde_json::to_writer(&mut payload, &text).map_err(|e| Error::local("JSON", e))?;
    payload.push(0);
    Ok(payload)
}

/// Reads the payload of the reply.
pub fn parse(payload: &[u8]) -> Result<Negotiated> {
    let broken = |what: String| Error::Protocol(format!("version reply: {what}"));
    let (Version { major, minor }, text) =
        take(payload).map_err(|_| broken(format!("{} bytes of payload", payload.len())))?;
    if major != VERSION_MAJOR || minor > VERSION_MINOR {
        return Err(broken(format!(
            "version {major}.{minor} for a proposed {VERSION_MAJOR}.{VERSION_MINOR}"
        )));
    }
    let json = match text.split_last() {
        None => b"{}",
        Some((0, json)) => json,
        Some(_) => return Err(broken("the capabilities do not end in a NUL".into())),
    };
    let text: Text = serde_json::from_slice(json).map_err(|e| {
        let quoted = String::from_utf8_lossy(json);
        broken(match e.is_data() {
            true => format!("capabilities of other types than the specification's: {quoted}"),
            false => format!("the capabilities are no JSON: {quoted}"),
        })
    })?;
    let capabilities = match text.capabilities {
        Some(capabilities) => capabilities,
        None => serde_json::from_str("{}").map_err(|_| broken("no capabilities".into()))?,
    };
    if capabilities.max_data_xfer_size == 0 {
        return Err(broken("max_data_xfer_size 0".into()));
    }
    Ok(Negotiated { major, minor, capabilities })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(major: u16, minor: u16, text: &[u8]) -> Result<Negotiated> {
        let mut payload = Version { major, minor }.as_bytes().to_vec();
        payload.extend_from_slice(text);
        parse(&payload)
    }

    #[test]
    fn a_server_that_says_nothing_has_the_defaults() {
        for text in [&b""[..], b"{}\0", b"{\"capabilities\":{}}\0", b"{\"capabilities\":{\"new\":[1]}}\0"] {
            let caps = reply(0, 1, text).unwrap().capabilities;
            assert_eq!((caps.max_msg_fds, caps.max_data_xfer_size), (1, 1 << 20));
            assert_eq!((caps.migration, caps.twin_socket, caps.pgsizes), (None, None, None));
            assert!(!caps.write_multiple);
        }
    }

    #[test]
    fn nonsense_is_a_protocol_violation() {
        let texts: [&[u8]; 9] = [
            b"{}",
            b"\0",
            b"{\0",
            b"[]x\0",
            b"{}{}\0",
            b"{\"capabilities\":1}\0",
            b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":0}}\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":\"1\"}}\0",
        ];
        for text in texts {
            assert!(matches!(reply(0, 0, text), Err(Error::Protocol(_))), "{text:?}");
        }
        assert!(matches!(reply(1, 0, b""), Err(Error::Protocol(_))));
        assert!(matches!(reply(0, 3, b""), Err(Error::Protocol(_))));
        assert!(matches!(parse(&[0, 0, 0]), Err(Error::Protocol(_))));
    }

    #[test]
    fn the_proposal_can_be_read_back() {
        let payload = proposal(true).unwrap();
        let caps = parse(&payload).unwrap().capabilities;
        assert_eq!(caps.max_msg_fds, 16);
        assert!(caps.twin_socket.unwrap().supported);
        assert!(parse(&proposal(false).unwrap()).unwrap().capabilities.twin_socket.is_none());
    }
}
