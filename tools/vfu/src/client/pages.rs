//! Sets of pages: dirty bitmaps, and what is made of them.

use std::ops::Range;

/// Pages of a range of memory, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Bytes of a page.
    page_size: u64,
    /// Bytes of the range; its last page may be cut short by its end.
    size: u64,
    words: Vec<u64>,
}

/// Words that a bitmap of `pages` pages has.
fn words(pages: u64) -> usize {
    usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX)
}

impl Pages {
    /// No page of a range of `size` bytes. A `page_size` of 0 counts as 1.
    pub fn none(size: u64, page_size: u64) -> Pages {
        let page_size = page_size.max(1);
        Pages { page_size, size, words: vec![0; words(size.div_ceil(page_size))] }
    }

    /// Every page of a range of `size` bytes.
    pub fn all(size: u64, page_size: u64) -> Pages {
        let mut pages = Pages::none(size, page_size);
        pages.words.fill(u64::MAX);
        pages.cut();
        pages
    }

    /// The pages whose bits are set in `bitmap`, as a server reports it. Bits
    /// for pages beyond the range, which some servers report, are left out.
    pub fn from_bitmap(size: u64, page_size: u64, bitmap: &[u8]) -> Pages {
        let mut pages = Pages::none(size, page_size);
        for (word, bytes) in pages.words.iter_mut().zip(bitmap.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        pages.cut();
        pages
    }

    /// Bytes of the bitmap that a server sends for a range.
    pub fn bitmap_size(size: u64, page_size: u64) -> u64 {
        const WORD_SIZE: u64 = 8;
        size.div_ceil(page_size.max(1)).div_ceil(64).saturating_mul(WORD_SIZE)
    }

    /// Clears the bits behind the last page.
    fn cut(&mut self) {
        let used = self.size.div_ceil(self.page_size) % 64;
        if let Some(last) = self.words.last_mut().filter(|_| used > 0) {
            *last &= (1 << used) - 1;
        }
    }

    /// Adds the pages that `len` bytes from `offset` on touch.
    pub fn mark(&mut self, offset: u64, len: u64) {
        if len == 0 || offset >= self.size {
            return;
        }
        let end = offset.saturating_add(len).min(self.size).div_ceil(self.page_size);
        for page in offset / self.page_size..end {
            let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
            if let Some(word) = self.words.get_mut(word) {
                *word |= 1 << (page % 64);
            }
        }
    }

    /// Adds the pages of `other`, which is of the same range.
    pub fn merge(&mut self, other: &Pages) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Takes all pages out.
    pub fn take(&mut self) -> Pages {
        let words = vec![0; self.words.len()];
        Pages { words: std::mem::replace(&mut self.words, words), ..*self }
    }

    /// Number of pages.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first page from `page` on that is in the set, or is not; `None` if
    /// there is none among the bits of the bitmap.
    fn find(&self, page: u64, set: bool) -> Option<u64> {
        let first = usize::try_from(page / 64).ok()?;
        let mut ignored = (1 << (page % 64)) - 1;
        for (n, word) in (page / 64..).zip(self.words.get(first..)?) {
            let wanted = if set { *word } else { !word } & !ignored;
            if wanted != 0 {
                return Some((n * 64).saturating_add(wanted.trailing_zeros().into()));
            }
            ignored = 0;
        }
        None
    }

    /// Runs of pages that follow each other, as bytes of the range.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = self.find(page, true)?;
            page = self.find(start, false).unwrap_or(u64::MAX);
            let end = page.saturating_mul(self.page_size).min(self.size);
            Some(start.saturating_mul(self.page_size)..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Page by page, without any cleverness.
    fn runs_by_page(dirty: &[bool], page_size: u64, size: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (n, _) in (0..).zip(dirty).filter(|(_, d)| **d) {
            let (start, end) = (n * page_size, ((n + 1) * page_size).min(size));
            match runs.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = end,
                None => runs.push(start..end),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn runs_are_what_the_bits_say(
            dirty in proptest::collection::vec(proptest::bool::weighted(0.7), 1..300),
            cut in 0u64..4096,
            beyond in any::<u64>(),
        ) {
            let size = dirty.len() as u64 * 4096 - cut;
            let bits = |n: usize| (0..64).filter(|i| dirty.get(n * 64 + i) == Some(&true)).fold(0u64, |w, i| w | 1 << i);
            let mut bitmap: Vec<u8> = (0..dirty.len().div_ceil(64)).flat_map(|n| bits(n).to_le_bytes()).collect();
            let pages = Pages::from_bitmap(size, 4096, &bitmap);
            prop_assert_eq!(pages.count(), dirty.iter().filter(|d| **d).count() as u64);
            prop_assert_eq!(pages.runs().collect::<Vec<_>>(), runs_by_page(&dirty, 4096, size));
            // What stands behind the last page changes nothing.
            for (i, byte) in beyond.to_le_bytes().into_iter().enumerate() {
                let at = dirty.len() / 64 * 8 + i;
                let keep = (0..8).filter(|bit| at * 8 + bit < dirty.len()).fold(0, |k, bit| k | 1 << bit);
                if let Some(old) = bitmap.get_mut(at) {
                    *old = *old & keep | byte & !keep;
                }
            }
            prop_assert_eq!(&Pages::from_bitmap(size, 4096, &bitmap), &pages);
        }

        #[test]
        fn marking_touches_the_pages_of_the_bytes(
            size in 1u64..5000, page_shift in 0u32..8,
            marks in proptest::collection::vec((0u64..6000, 0u64..600), 0..5),
        ) {
            let page_size = 1 << page_shift;
            let mut pages = Pages::none(size, page_size);
            let mut dirty = vec![false; size.div_ceil(page_size) as usize];
            for (offset, len) in marks {
                pages.mark(offset, len);
                for byte in offset..(offset + len).min(size) {
                    dirty[(byte / page_size) as usize] = true;
                }
            }
            prop_assert_eq!(pages.runs().collect::<Vec<_>>(), runs_by_page(&dirty, page_size, size));
        }
    }

    #[test]
    fn everything_and_nothing() {
        for size in [1, 4095, 4096, 64 * 4096, 64 * 4096 + 1, 1 << 20] {
            let all = Pages::all(size, 4096);
            assert_eq!((all.count(), all.runs().count()), (size.div_ceil(4096), 1));
            assert_eq!(all.runs().next(), Some(0..size));
            let mut none = Pages::none(size, 4096);
            assert_eq!((none.count(), none.runs().count()), (0, 0));
            none.merge(&all);
            assert_eq!(none.take(), all);
            assert_eq!(none.count(), 0);
        }
        assert_eq!(Pages::all(0, 4096).runs().count(), 0);
        assert_eq!(Pages::bitmap_size(64 * 4096 + 1, 4096), 16);
        assert_eq!(Pages::bitmap_size(64 << 30, 4096), 2 << 20);
    }
}
