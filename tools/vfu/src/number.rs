//! Numbers as people write them: decimal, or hexadecimal after 0x; K, M or G may follow and
//! stand for 2^10, 2^20 and 2^30.

use clap_num::maybe_hex;

/// A number that fits `T`. What is wrong with others is said in words of this program.
pub fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (text.get(..at), 10),
        Some((at, 'M' | 'm')) => (text.get(..at), 20),
        Some((at, 'G' | 'g')) => (text.get(..at), 30),
        _ => (Some(text), 0),
    };
    let digits = digits.unwrap_or_default();
    let is_number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => !hexadecimal.is_empty() && hexadecimal.chars().all(|c| c.is_ascii_hexdigit()),
        None => !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()),
    };
    if !is_number {
        return Err("not a number".into());
    }
    let value: Option<u64> = maybe_hex(&digits.to_ascii_lowercase()).ok();
    let value = value.and_then(|value: u64| value.checked_mul(1 << shift));
    value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| "too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_their_units() {
        for (text, value) in [
            ("0", 0),
            ("010", 10),
            ("0x10", 16),
            ("0Xfe", 254),
            ("4k", 4096),
            ("0x10K", 16 << 10),
            ("3M", 3 << 20),
            ("2g", 2 << 30),
            ("18446744073709551615", u64::MAX),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(number::<u64>(text), Ok(value), "{text}");
        }
        assert_eq!(number::<u8>("255"), Ok(255));
    }

    #[test]
    fn what_is_none_is_told_in_our_words() {
        for text in ["", "k", "-1", "+1", "0x", "0xk", "1kk", "beef", "1.5", "1 k", "ß", "1ß"] {
            assert_eq!(number::<u64>(text), Err("not a number".into()), "{text}");
        }
        for text in ["18446744073709551616", "0x10000000000000000", "18014398509481984k", "17179869184G"] {
            assert_eq!(number::<u64>(text), Err("too large".into()), "{text}");
        }
        assert_eq!(number::<u8>("256"), Err("too large".into()));
        assert_eq!(number::<u32>("4G"), Err("too large".into()));
    }
}
