//! The JSON of the version message.
//!
//! Strict JSON (RFC 8259) with an object at the top. Unknown members are
//! skipped without being stored, so a large text costs no more memory than
//! itself; nesting too deep for the parser is an error.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};

use super::{Errno, Result, limits};
use crate::memory::Bytes;

/// An integer. JSON numbers with a fraction or an exponent are none; one that
/// fits 64 bits only without a sign counts as the largest one with a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Integer(i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Integer, D::Error> {
        struct IntegerVisitor;
        impl Visitor<'_> for IntegerVisitor {
            type Value = Integer;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an integer")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Integer, E> {
                Ok(Integer(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Integer, E> {
                Ok(Integer(i64::try_from(v).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Integer, E> {
                Err(E::invalid_type(Unexpected::Float(v), &self))
            }
        }
        d.deserialize_any(IntegerVisitor)
    }
}

/// A JSON object, and nothing else: what serde derives for a struct would take
/// an array of its members, too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Object<T>, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        d.deserialize_any(ObjectVisitor(PhantomData))
    }
}

/// A member that may be absent but not `null`.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

#[derive(Deserialize)]
struct Text {
    #[serde(default, deserialize_with = "present")]
    capabilities: Option<Object<Members>>,
}

#[derive(Default, Deserialize)]
struct Members {
    #[serde(default, deserialize_with = "present")]
    max_msg_fds: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    max_data_xfer_size: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    migration: Option<Object<Migration>>,
    #[serde(default, deserialize_with = "present")]
    twin_socket: Option<Object<TwinSocket>>,
    #[serde(default, deserialize_with = "present")]
    pgsizes: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    max_dma_maps: Option<Integer>,
    #[serde(default, deserialize_with = "present")]
    write_multiple: Option<bool>,
}

#[derive(Deserialize)]
struct Migration {
    #[serde(default, deserialize_with = "present")]
    pgsize: Option<Integer>,
}

#[derive(Deserialize)]
struct TwinSocket {
    #[serde(default, deserialize_with = "present")]
    supported: Option<bool>,
}

/// What a client said of itself in its version message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCapabilities {
    /// Descriptors it takes with one message.
    pub max_msg_fds: u32,
    /// Largest data transfer it takes, in bytes; 1 to 1 048 576.
    pub max_data_xfer_size: usize,
    /// `migration.pgsize`, if it gave one that is not 0.
    pub migration_pgsize: Option<i64>,
    /// It wants a second socket for the server's commands.
    pub twin_socket: bool,
    /// It proposed `pgsizes`.
    pub pgsizes: bool,
    /// `max_dma_maps`, if it gave one.
    pub max_dma_maps: Option<i64>,
    /// It proposed `VFIO_USER_REGION_WRITE_MULTI`.
    pub write_multiple: bool,
}

impl Default for ClientCapabilities {
    /// What a client that says nothing is taken to be.
    fn default() -> Self {
        ClientCapabilities {
            max_msg_fds: limits::DEFAULT_MAX_MSG_FDS,
            max_data_xfer_size: limits::MAX_DATA_XFER_SIZE,
            migration_pgsize: None,
            twin_socket: false,
            pgsizes: false,
            max_dma_maps: None,
            write_multiple: false,
        }
    }
}

impl ClientCapabilities {
    /// Reads what follows the version numbers in a version message: nothing,
    /// or JSON that ends in the message's only NUL. `EINVAL` for anything else,
    /// for members of a wrong type, and for numbers that make no sense.
    pub fn parse(text: &[u8]) -> Result<ClientCapabilities> {
        if text.is_empty() {
            return Ok(ClientCapabilities::default());
        }
        let Some((0, json)) = text.split_last() else {
            return Err(Errno::EINVAL);
        };
        if json.contains(&0) {
            return Err(Errno::EINVAL);
        }
        // The parser itself does not look into strings that it skips.
        let json = str::from_utf8(json).map_err(|_| Errno::EINVAL)?;
        let Object(text): Object<Text> = serde_json::from_str(json).map_err(|_| Errno::EINVAL)?;
        let members = text.capabilities.map_or_else(Members::default, |Object(m)| m);
        members.judge()
    }
}

impl Members {
    fn judge(self) -> Result<ClientCapabilities> {
        let mut caps = ClientCapabilities {
            migration_pgsize: self
                .migration
                .and_then(|Object(m)| m.pgsize)
                .map(|Integer(n)| n)
                .filter(|n| *n != 0),
            twin_socket: self.twin_socket.and_then(|Object(t)| t.supported).unwrap_or(false),
            pgsizes: self.pgsizes.is_some(),
            max_dma_maps: self.max_dma_maps.map(|Integer(n)| n),
            write_multiple: self.write_multiple.unwrap_or(false),
            ..ClientCapabilities::default()
        };
        if let Some(Integer(n)) = self.max_msg_fds {
            if !(0..=limits::CLIENT_MAX_MSG_FDS).contains(&n) {
                return Err(Errno::EINVAL);
            }
            caps.max_msg_fds = u32::try_from(n).map_err(|_| Errno::EINVAL)?;
        }
        if let Some(Integer(n)) = self.max_data_xfer_size {
            let n = usize::try_from(n).map_err(|_| Errno::EINVAL)?;
            if n == 0 {
                return Err(Errno::EINVAL);
            }
            caps.max_data_xfer_size = n.min(limits::MAX_DATA_XFER_SIZE);
        }
        Ok(caps)
    }
}

/// What the server answers. Members that are `None` or false are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerCapabilities {
    /// Page size for dirty logging, if the device can migrate.
    pub migration_pgsize: Option<u64>,
    /// A second socket comes with the reply.
    pub twin_socket: bool,
    /// Page sizes for DMA.
    pub pgsizes: Option<u64>,
    /// DMA regions that can be mapped at a time.
    pub max_dma_maps: Option<u64>,
    /// `VFIO_USER_REGION_WRITE_MULTI` may be used.
    pub write_multiple: bool,
}

#[derive(Serialize)]
struct ReplyText {
    capabilities: ReplyMembers,
}

#[derive(Serialize)]
struct ReplyMembers {
    max_msg_fds: u32,
    max_data_xfer_size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<ReplyMigration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    twin_socket: Option<ReplyTwinSocket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pgsizes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_dma_maps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_multiple: Option<bool>,
}

#[derive(Serialize)]
struct ReplyMigration {
    pgsize: u64,
}

#[derive(Serialize)]
struct ReplyTwinSocket {
    supported: bool,
    fd_index: u32,
}

impl ServerCapabilities {
    /// The JSON, in its shortest form, with the NUL that ends it.
    pub fn to_text(&self) -> Result<Vec<u8>> {
        let text = ReplyText {
            capabilities: ReplyMembers {
                max_msg_fds: limits::SERVER_MAX_MSG_FDS,
                max_data_xfer_size: limits::MAX_DATA_XFER_SIZE,
                migration: self.migration_pgsize.map(|pgsize| ReplyMigration { pgsize }),
                twin_socket: self.twin_socket.then_some(ReplyTwinSocket { supported: true, fd_index: 0 }),
                pgsizes: self.pgsizes,
                max_dma_maps: self.max_dma_maps,
                write_multiple: self.write_multiple.then_some(true),
            },
        };
        let mut bytes = Bytes::default();
        serde_json::to_writer(&mut bytes, &text).map_err(|_| Errno::ENOMEM)?;
        bytes.append(&[0])?;
        Ok(bytes.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_member_that_is_not_utf_8_is_einval() {
        assert!(ClientCapabilities::parse(b"{\"x\":\"\xc3\xbf\"}\0").is_ok());
        for text in
            [&b"{\"x\":\"\xff\"}\0"[..], b"{\"x\":\"\xc3\"}\0", b"{\"x\":[{\"y\":\"\xed\xa0\x80\"}]}\0"]
        {
            assert_eq!(ClientCapabilities::parse(text), Err(Errno::EINVAL));
        }
    }
}
