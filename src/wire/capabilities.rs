//! The JSON of the version message.
//!
//! Strict JSON (RFC 8259) with an object at the top. Unknown members are
//! skipped without being stored, so a large text costs no more memory than
//! itself; nesting too deep for the parser is an error.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Errno, Result, limits};
use crate::memory::{self, Bytes};

/// The value of a member. Nothing is judged before the end of the text: of a
/// member that is given twice the last counts, and the first may be anything.
#[derive(Default)]
enum Value<T = Scalar> {
    #[default]
    Absent,
    /// A number without fraction and exponent; one that fits 64 bits only without
    /// a sign counts as the largest one with a sign.
    Integer(i64),
    Bool(bool),
    Object(T),
    Other,
}

/// An object that is filled in member by member.
trait Object: Default {
    /// Reads the value of `name`, if that is a member; whether it is.
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// For what is no object.
#[derive(Default)]
struct Scalar;

impl Object for Scalar {
    fn member<'de, A: MapAccess<'de>>(&mut self, _: &str, _: &mut A) -> Result<bool, A::Error> {
        Ok(false)
    }
}

impl<'de, T: Object> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Value<T>, D::Error> {
        struct ValueVisitor<T>(PhantomData<T>);
        impl<'de, T: Object> Visitor<'de> for ValueVisitor<T> {
            type Value = Value<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Value<T>, E> {
                Ok(Value::Integer(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Value<T>, E> {
                Ok(Value::Integer(i64::try_from(v).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Value<T>, E> {
                Ok(Value::Other)
            }
            fn visit_bool<E>(self, v: bool) -> Result<Value<T>, E> {
                Ok(Value::Bool(v))
            }
            fn visit_str<E>(self, _: &str) -> Result<Value<T>, E> {
                Ok(Value::Other)
            }
            fn visit_unit<E>(self) -> Result<Value<T>, E> {
                Ok(Value::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<T>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Value::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value<T>, A::Error> {
                let mut object = T::default();
                while let Some(Name(name)) = map.next_key()? {
                    if !object.member(&name, &mut map)? {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Value::Object(object))
            }
        }
        d.deserialize_any(ValueVisitor(PhantomData))
    }
}

impl<T: Object> Value<T> {
    fn integer(self) -> Result<Option<i64>> {
        match self {
            Value::Absent => Ok(None),
            Value::Integer(n) => Ok(Some(n)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Absent, it is false.
    fn bool(self) -> Result<bool> {
        match self {
            Value::Absent => Ok(false),
            Value::Bool(value) => Ok(value),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Absent, it is empty.
    fn object(self) -> Result<T> {
        match self {
            Value::Absent => Ok(T::default()),
            Value::Object(object) => Ok(object),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// The name of a member: borrowed, but for one with escapes in it.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Name<'de>, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(v)))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Name<'de>, E> {
                let name = memory::string(v).map_err(|_| E::custom("no memory"))?;
                Ok(Name(Cow::Owned(name)))
            }
        }
        d.deserialize_str(NameVisitor)
    }
}

#[derive(Default)]
struct Text {
    capabilities: Value<Capabilities>,
}

impl Object for Text {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "capabilities" => self.capabilities = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Capabilities {
    max_msg_fds: Value,
    max_data_xfer_size: Value,
    migration: Value<Migration>,
    twin_socket: Value<TwinSocket>,
    pgsizes: Value,
    max_dma_maps: Value,
    write_multiple: Value,
}

impl Object for Capabilities {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            // `max_fds` is its name of before 2021.
            "max_msg_fds" | "max_fds" => self.max_msg_fds = map.next_value()?,
            "max_data_xfer_size" => self.max_data_xfer_size = map.next_value()?,
            "migration" => self.migration = map.next_value()?,
            "twin_socket" => self.twin_socket = map.next_value()?,
            "pgsizes" => self.pgsizes = map.next_value()?,
            "max_dma_maps" => self.max_dma_maps = map.next_value()?,
            "write_multiple" => self.write_multiple = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Default)]
struct Migration {
    pgsize: Value,
}

impl Object for Migration {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "pgsize" => self.pgsize = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[derive(Default)]
struct TwinSocket {
    supported: Value,
}

impl Object for TwinSocket {
    fn member<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "supported" => self.supported = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// What a client said of itself in its version message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCapabilities {
    /// Descriptors it takes with one message.
    pub max_msg_fds: u32,
    /// The same for `VFIO_USER_DEVICE_GET_REGION_IO_FDS`: more where it doesn't
    /// say, since one alone is of little use there.
    pub max_io_fds: u32,
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
            max_io_fds: limits::DEFAULT_MAX_IO_FDS,
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
        let text: Value<Text> = serde_json::from_str(json).map_err(|_| Errno::EINVAL)?;
        text.object()?.capabilities.object()?.judge()
    }
}

impl Capabilities {
    fn judge(self) -> Result<ClientCapabilities> {
        let mut caps = ClientCapabilities {
            migration_pgsize: self.migration.object()?.pgsize.integer()?.filter(|n| *n != 0),
            twin_socket: self.twin_socket.object()?.supported.bool()?,
            pgsizes: self.pgsizes.integer()?.is_some(),
            max_dma_maps: self.max_dma_maps.integer()?,
            write_multiple: self.write_multiple.bool()?,
            ..ClientCapabilities::default()
        };
        if let Some(n) = self.max_msg_fds.integer()? {
            if !(0..=limits::CLIENT_MAX_MSG_FDS).contains(&n) {
                return Err(Errno::EINVAL);
            }
            caps.max_msg_fds = u32::try_from(n).map_err(|_| Errno::EINVAL)?;
            caps.max_io_fds = caps.max_msg_fds;
        }
        if let Some(n) = self.max_data_xfer_size.integer()? {
            if n <= 0 {
                return Err(Errno::EINVAL);
            }
            // More than a 32-bit machine has numbers for is still only more than is used.
            let n = usize::try_from(n).unwrap_or(usize::MAX);
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

/// What the longest answer fits into, in bytes.
const LONGEST: usize = 256;

impl ServerCapabilities {
    /// The JSON, in its shortest form, with the NUL that ends it. (Numbers, and names
    /// that need no escapes: it takes no more than this to write it.)
    pub fn to_text(&self) -> Result<Vec<u8>> {
        let mut text = Bytes::default();
        memory::reserve(&mut text.0, LONGEST)?;
        self.write(&mut text).map_err(|_| Errno::ENOMEM)?;
        Ok(text.0)
    }

    fn write(&self, text: &mut Bytes) -> fmt::Result {
        let (fds, size) = (limits::SERVER_MAX_MSG_FDS, limits::MAX_DATA_XFER_SIZE);
        write!(text, r#"{{"capabilities":{{"max_msg_fds":{fds},"max_data_xfer_size":{size}"#)?;
        if let Some(pgsize) = self.migration_pgsize {
            write!(text, r#","migration":{{"pgsize":{pgsize}}}"#)?;
        }
        if self.twin_socket {
            text.write_str(r#","twin_socket":{"supported":true,"fd_index":0}"#)?;
        }
        if let Some(pgsizes) = self.pgsizes {
            write!(text, r#","pgsizes":{pgsizes}"#)?;
        }
        if let Some(max_dma_maps) = self.max_dma_maps {
            write!(text, r#","max_dma_maps":{max_dma_maps}"#)?;
        }
        if self.write_multiple {
            text.write_str(r#","write_multiple":true"#)?;
        }
        text.write_str("}}\0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ClientCapabilities> {
        ClientCapabilities::parse(format!("{json}\0").as_bytes())
    }

    #[test]
    fn of_a_member_given_twice_the_last_counts() {
        let of = |members: &str| parse(&format!(r#"{{"capabilities":{{{members}}}}}"#)).unwrap();
        assert_eq!(of(r#""max_msg_fds":3,"max_msg_fds":5"#).max_msg_fds, 5);
        assert_eq!(of(r#""max_fds":3,"max_msg_fds":5"#).max_msg_fds, 5);
        assert_eq!(of(r#""max_msg_fds":5,"max_fds":3"#).max_msg_fds, 3);
        assert_eq!(of(r#""max\u005ffds":7"#).max_msg_fds, 7);
        assert_eq!(of(r#""max_msg_fds":1025,"max_msg_fds":5"#).max_msg_fds, 5);
        assert_eq!(of(r#""migration":{"pgsize":1,"pgsize":4096}"#).migration_pgsize, Some(4096));
        assert_eq!(of(r#""migration":{"pgsize":1},"migration":{}"#).migration_pgsize, None);
        assert!(of(r#""twin_socket":{"supported":false,"supported":true}"#).twin_socket);
        assert!(!of(r#""twin_socket":{"supported":true},"twin_socket":{"supported":false}"#).twin_socket);
        let twice =
            r#"{"capabilities":{"write_multiple":true,"max_fds":4},"capabilities":{"max_dma_maps":9}}"#;
        let expected = ClientCapabilities { max_dma_maps: Some(9), ..ClientCapabilities::default() };
        assert_eq!(parse(twice), Ok(expected));
        // Also if the first one is no use at all.
        assert_eq!(of(r#""max_fds":"4","max_fds":4"#).max_msg_fds, 4);
        assert_eq!(of(r#""migration":{"pgsize":null},"migration":{}"#).migration_pgsize, None);
        assert_eq!(parse(r#"{"capabilities":[],"capabilities":{}}"#), Ok(ClientCapabilities::default()));
        for last in [
            r#""max_fds":4,"max_fds":"4""#,
            r#""migration":{},"migration":1"#,
            r#""pgsizes":1,"pgsizes":1.0"#,
        ] {
            assert_eq!(parse(&format!(r#"{{"capabilities":{{{last}}}}}"#)), Err(Errno::EINVAL), "{last}");
        }
        assert_eq!(parse(r#"{"capabilities":{},"capabilities":[]}"#), Err(Errno::EINVAL));
    }

    #[test]
    fn the_answer_is_json_whatever_is_in_it() {
        for members in 0..32_u32 {
            let has = |bit: u32| members >> bit & 1 != 0;
            let server = ServerCapabilities {
                migration_pgsize: has(0).then_some(4096),
                twin_socket: has(1),
                pgsizes: has(2).then_some(u64::MAX),
                max_dma_maps: has(3).then_some(u64::MAX),
                write_multiple: has(4),
            };
            let mut said = serde_json::json!({"max_msg_fds": 8, "max_data_xfer_size": 1 << 20});
            if has(0) {
                said["migration"] = serde_json::json!({"pgsize": 4096});
            }
            if has(1) {
                said["twin_socket"] = serde_json::json!({"supported": true, "fd_index": 0});
            }
            if has(2) {
                said["pgsizes"] = u64::MAX.into();
            }
            if has(3) {
                said["max_dma_maps"] = u64::MAX.into();
            }
            if has(4) {
                said["write_multiple"] = true.into();
            }
            let text = server.to_text().unwrap();
            let json = text.strip_suffix(b"\0").unwrap();
            let value: serde_json::Value = serde_json::from_slice(json).unwrap();
            assert_eq!(value, serde_json::json!({"capabilities": said}));
            assert!(!json.contains(&b' ') && text.len() <= LONGEST, "{text:?}");
        }
    }

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
