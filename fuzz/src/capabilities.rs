//! The JSON of the version message, against a judge of any JSON text.

use std::fmt::Write;

use arbitrary::{Arbitrary, Result, Unstructured};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use vfio_user::wire::Errno;
use vfio_user::wire::capabilities::{ClientCapabilities, ServerCapabilities};

/// One half of all inputs is a text, the other one makes one of words that
/// matter.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => check(rest),
        1 => {
            let mut text = rest.to_vec();
            text.push(0);
            check(&text);
        }
        2 => {
            let mut u = Unstructured::new(rest);
            let mut text = String::new();
            // Input that is too short gives a text that is cut.
            let _ = object(&mut u, &mut text, 0);
            let mut text = text.into_bytes();
            text.push(0);
            check(&text);
        }
        _ => {
            let _ = check_reply(&mut Unstructured::new(rest));
        }
    }
}

fn check(text: &[u8]) {
    let parsed = ClientCapabilities::parse(text);
    if let Some(expected) = expect(text) {
        assert_eq!(parsed, expected, "{}", String::from_utf8_lossy(text));
    }
    if let Ok(client) = parsed {
        assert!((1..=1 << 20).contains(&client.max_data_xfer_size));
        assert!(client.max_msg_fds <= 1024);
    }
}

/// What a text amounts to; none where either way is right.
fn expect(text: &[u8]) -> Option<Result<ClientCapabilities, Errno>> {
    let Some((last, json)) = text.split_last() else { return Some(Ok(ClientCapabilities::default())) };
    if *last != 0 || json.contains(&0) || str::from_utf8(json).is_err() {
        return Some(Err(Errno::EINVAL));
    }
    match serde_json::from_slice::<Json>(json) {
        Ok(value) => Some(judge(&value).ok_or(Errno::EINVAL)),
        // Well-formed, though no program can hold it: a number beyond all
        // floating point, half of a pair of surrogates.
        Err(e) if e.to_string().starts_with("number out of range") => None,
        Err(e) if e.to_string().contains("surrogate") || e.to_string().contains("hex escape") => None,
        Err(_) => Some(Err(Errno::EINVAL)),
    }
}

/// Any JSON value; an object's members as they come, doubles included.
enum Json {
    Integer(i64),
    Bool(bool),
    Object(Vec<(String, Json)>),
    Other,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Json, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Json, E> {
                Ok(Json::Integer(v))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Json, E> {
                Ok(Json::Integer(v.try_into().unwrap_or(i64::MAX)))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Json, E> {
                Ok(Json::Bool(v))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_str<E>(self, _: &str) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                while seq.next_element::<Json>()?.is_some() {}
                Ok(Json::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Json::Object(members))
            }
        }
        d.deserialize_any(Any)
    }
}

impl Json {
    fn integer(&self) -> Option<i64> {
        if let Json::Integer(n) = self { Some(*n) } else { None }
    }

    fn bool(&self) -> Option<bool> {
        if let Json::Bool(b) = self { Some(*b) } else { None }
    }

    /// The member with one of these names, of several the last, converted; none for
    /// one of a wrong type, and for what is no object.
    fn member<T>(&self, names: &[&str], convert: impl Fn(&Json) -> Option<T>) -> Option<Option<T>> {
        let Json::Object(members) = self else { return None };
        match members.iter().rfind(|member| names.contains(&&*member.0)) {
            None => Some(None),
            Some((_, value)) => convert(value).map(Some),
        }
    }
}

/// What the client said; none if it can't be used.
fn judge(text: &Json) -> Option<ClientCapabilities> {
    let said = text.member(&["capabilities"], |members| {
        let max_msg_fds = members.member(&["max_msg_fds", "max_fds"], Json::integer)?;
        let max_data_xfer_size = members.member(&["max_data_xfer_size"], Json::integer)?.unwrap_or(1 << 20);
        let migration_pgsize =
            members.member(&["migration"], |m| m.member(&["pgsize"], Json::integer))?.flatten();
        let twin_socket =
            members.member(&["twin_socket"], |t| t.member(&["supported"], Json::bool))?.flatten();
        let fds = |unsaid| u32::try_from(max_msg_fds.unwrap_or(unsaid)).ok().filter(|n| *n <= 1024);
        Some(ClientCapabilities {
            max_msg_fds: fds(1)?,
            max_io_fds: fds(8)?,
            max_data_xfer_size: usize::try_from(max_data_xfer_size).ok().filter(|n| *n != 0)?.min(1 << 20),
            migration_pgsize: migration_pgsize.filter(|n| *n != 0),
            twin_socket: twin_socket == Some(true),
            pgsizes: members.member(&["pgsizes"], Json::integer)?.is_some(),
            max_dma_maps: members.member(&["max_dma_maps"], Json::integer)?,
            write_multiple: members.member(&["write_multiple"], Json::bool)? == Some(true),
        })
    })?;
    Some(said.unwrap_or_default())
}

const NAMES: [&str; 12] = [
    "capabilities",
    "max_msg_fds",
    "max_fds",
    "max_data_xfer_size",
    "migration",
    "pgsize",
    "twin_socket",
    "supported",
    "pgsizes",
    "max_dma_maps",
    "write_multiple",
    "fd_index",
];

fn object(u: &mut Unstructured, text: &mut String, depth: usize) -> Result<()> {
    text.push('{');
    for number in 0..u.int_in_range(0..=9)? {
        if number != 0 {
            text.push(',');
        }
        // The names of this level most of the time.
        let name = match (u8::arbitrary(u)? % 8, depth) {
            (0, _) => "x",
            (1, _) => *u.choose(&NAMES)?,
            (_, 0) => NAMES[0],
            (_, 1) => *u.choose(&NAMES)?,
            _ => *u.choose(&["pgsize", "supported", "fd_index"])?,
        };
        let _ = write!(text, "\"{name}\":");
        value(u, text, depth, name)?;
    }
    text.push('}');
    Ok(())
}

fn value(u: &mut Unstructured, text: &mut String, depth: usize, name: &str) -> Result<()> {
    let fitting = match name {
        "capabilities" | "migration" | "twin_socket" => 0,
        "supported" | "write_multiple" => 1,
        _ => 2,
    };
    let kind = match u8::arbitrary(u)? % 32 {
        other @ 0..8 => other,
        _ => fitting,
    };
    let _ = match kind {
        0 if depth < 4 => return object(u, text, depth + 1),
        0 | 1 => write!(text, "{}", bool::arbitrary(u)?),
        2 => write!(
            text,
            "{}",
            [-1_i64, 0, 1, 8, 1024, 1025, 4095, 4096, 1 << 20, 1 << 32][u.choose_index(10)?]
        ),
        3 => write!(text, "{}", i128::from(i64::arbitrary(u)?) * i128::from(u8::arbitrary(u)?)),
        4 => write!(
            text,
            "{}",
            *u.choose(&["null", "1.0", "1e3", "-0", "0.5", "1e999", "18446744073709551615"])?
        ),
        5 => write!(text, "\"{}\"", *u.choose(&["4096", "", "\\u0000", "\\ud800", "true"])?),
        6 => write!(text, "{}1{}", "[".repeat(100), "]".repeat(100)),
        _ => write!(text, " [ {} ,\n null ] ", u8::arbitrary(u)?),
    };
    Ok(())
}

/// What the server says of itself has these members, and one NUL, at the end.
fn check_reply(u: &mut Unstructured) -> Result<()> {
    let server = ServerCapabilities {
        migration_pgsize: Option::arbitrary(u)?,
        twin_socket: bool::arbitrary(u)?,
        pgsizes: Option::arbitrary(u)?,
        max_dma_maps: Option::arbitrary(u)?,
        write_multiple: bool::arbitrary(u)?,
    };
    let text = server.to_text().expect("there is memory");
    let json = text.strip_suffix(&[0]).expect("NUL at the end");
    let value: serde_json::Value = serde_json::from_slice(json).expect("JSON");
    let said = &value["capabilities"];
    assert_eq!((&said["max_msg_fds"], &said["max_data_xfer_size"]), (&8.into(), &(1 << 20).into()));
    let number = |n: Option<u64>| n.map_or(serde_json::Value::Null, Into::into);
    assert_eq!(said["migration"]["pgsize"], number(server.migration_pgsize));
    assert_eq!(said["pgsizes"], number(server.pgsizes));
    assert_eq!(said["max_dma_maps"], number(server.max_dma_maps));
    assert_eq!(said["twin_socket"]["supported"].as_bool().unwrap_or(false), server.twin_socket);
    assert_eq!(said["write_multiple"].as_bool().unwrap_or(false), server.write_multiple);
    assert!(ClientCapabilities::parse(&text).is_ok());
    Ok(())
}
