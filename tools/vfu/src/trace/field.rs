//! What is known of a message, by name: one description for people, for JSON
//! and for filters.

use std::fmt;

use serde::ser::{Serialize, SerializeMap, Serializer};

/// Bytes of data that are shown.
const SHOWN: usize = 16;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A count or an index.
    Number(u64),
    /// An address, an offset or a size.
    Hex(u64),
    /// What a register has, in so many bytes.
    Register(u64, usize),
    /// A word or a sentence.
    Text(String),
    /// Flags or names that hold together.
    Words(Vec<String>),
    /// The first bytes of data of this size.
    Data(Vec<u8>, u64),
    /// Capabilities.
    Json(serde_json::Value),
}

impl Value {
    /// Data: a number, if it has the size of a register.
    pub fn data(bytes: &[u8], size: u64) -> Value {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
        match bytes.len() {
            1 | 2 | 4 | 8 if bytes.len() as u64 == size => Value::Register(number(bytes), bytes.len()),
            _ => Value::Data(bytes.get(..SHOWN).unwrap_or(bytes).to_vec(), size),
        }
    }

    /// Names, as a list.
    pub fn words<T: ToString>(words: impl IntoIterator<Item = T>) -> Value {
        Value::Words(words.into_iter().map(|word| word.to_string()).collect())
    }

    /// Whether it is what a person has written.
    pub fn is(&self, text: &str) -> bool {
        let number = crate::number::number::<u64>(text).ok();
        match self {
            Value::Number(n) | Value::Hex(n) | Value::Register(n, _) => number == Some(*n),
            Value::Text(own) => own.eq_ignore_ascii_case(text),
            Value::Words(words) => words.iter().any(|word| word.eq_ignore_ascii_case(text)),
            Value::Data(_, size) => number == Some(*size),
            Value::Json(_) => false,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

/// What a peer has sent may be quoted: in one line.
fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/+:(),".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => f.write_str(text),
        false => write!(f, "{text:?}"),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(n) => write!(f, "{n}"),
            Value::Hex(n) => write!(f, "{n:#x}"),
            Value::Register(n, bytes) => write!(f, "{n:#0width$x}", width = bytes * 2 + 2),
            Value::Text(text) => quoted(f, text),
            Value::Words(words) if words.is_empty() => f.write_str("none"),
            Value::Words(words) => quoted(f, &words.join(",")),
            Value::Data(bytes, size) => {
                let more = if *size > bytes.len() as u64 { " …" } else { "" };
                write!(f, "{size} bytes: {}{more}", hexadecimal(bytes))
            }
            Value::Json(value) => write!(f, "{value}"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Number(n) | Value::Hex(n) | Value::Register(n, _) => to.serialize_u64(*n),
            Value::Text(text) => to.serialize_str(text),
            Value::Words(words) => words.serialize(to),
            Value::Data(bytes, _) => to.serialize_str(&hexadecimal(bytes)),
            Value::Json(value) => value.serialize(to),
        }
    }
}

/// Names and values, in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Adds a field.
    pub fn add(&mut self, name: &'static str, value: Value) {
        self.0.push((name, value));
    }

    /// Adds an address, an offset or a size.
    pub fn hex(&mut self, name: &'static str, value: impl Into<u64>) {
        self.add(name, Value::Hex(value.into()));
    }

    /// Adds a count or an index.
    pub fn number(&mut self, name: &'static str, value: impl Into<u64>) {
        self.add(name, Value::Number(value.into()));
    }

    /// Adds words.
    pub fn text(&mut self, name: &'static str, value: impl ToString) {
        self.add(name, Value::Text(value.to_string()));
    }

    /// Whether a field of this name has this value.
    pub fn has(&self, name: &str, text: &str) -> bool {
        self.0.iter().any(|(own, value)| own.eq_ignore_ascii_case(name) && value.is(text))
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_people() {
        for (value, shown) in [
            (Value::Number(10), "10"),
            (Value::Hex(16), "0x10"),
            (Value::data(&[0x34, 0x12], 2), "0x1234"),
            (Value::data(&[1, 0, 0, 0], 4), "0x00000001"),
            (Value::data(&[1, 2, 3], 3), "3 bytes: 01 02 03"),
            (Value::data(&[7; 4], 9), "9 bytes: 07 07 07 07 …"),
            (Value::data(&[], 0), "0 bytes: "),
            (Value::Text("BAR0".into()), "BAR0"),
            (Value::Text("two words\n".into()), "\"two words\\n\""),
            (Value::words([0; 0]), "none"),
            (Value::words(["a", "b"]), "a,b"),
        ] {
            assert_eq!(value.to_string(), shown);
        }
    }

    #[test]
    fn values_that_a_filter_names() {
        assert!(Value::Hex(4096).is("4k") && Value::Hex(4096).is("0x1000") && !Value::Hex(4096).is("1000"));
        assert!(Value::Text("BAR0".into()).is("bar0"));
        assert!(Value::words(["read", "write"]).is("write") && !Value::words(["read"]).is("write"));
        assert!(Value::data(&[0; 20], 20).is("20"));
    }
}
