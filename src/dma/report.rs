//! Translating dirty bits of regions into those of a reply.
//!
//! Bit j of a region's bitmap stands for the j-th logging page counted from the
//! region's start; bit i of the reply for the i-th reported page counted from
//! the first address of the report.

use super::sizes::GROUP_WORDS;

/// The part of a region that is being reported.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// The region's first address.
    pub(super) start: u64,
    /// Last address that the reply covers in this region.
    pub(super) covered_last: u64,
    /// Log2 of the logging page size.
    pub(super) page_shift: u32,
}

/// The bitmap of a reply.
pub(super) struct Reply<'a> {
    bitmap: &'a mut [u8],
    /// Words of the bitmap that have a value already; the others hold garbage.
    /// So a bitmap as large as the cache is gone through once only.
    valid: usize,
    iova: u64,
    /// Log2 of the reported page size.
    page_shift: u32,
}

impl<'a> Reply<'a> {
    /// A reply for addresses from `iova` on, of a whole number of words.
    pub(super) fn new(bitmap: &'a mut [u8], iova: u64, page_shift: u32) -> Reply<'a> {
        Reply { bitmap, valid: 0, iova, page_shift }
    }

    /// Makes the rest of the bitmap zero.
    pub(super) fn finish(mut self) {
        self.make_valid(usize::MAX);
    }

    fn make_valid(&mut self, words: usize) {
        let end = words.saturating_mul(8).min(self.bitmap.len());
        if let Some(rest) = self.bitmap.get_mut(self.valid * 8..end) {
            rest.fill(0);
            self.valid = end / 8;
        }
    }

    /// Adds words of a region's bitmap, the first of which has this number.
    /// They are used up.
    pub(super) fn add(&mut self, part: &Part, first_word: u64, words: &mut [u64]) {
        let page_mask = (1_u64 << part.page_shift) - 1;
        let is_aligned = part.start.wrapping_sub(self.iova) & page_mask == 0;
        if self.page_shift < part.page_shift || !is_aligned {
            return self.add_runs(part, first_word, words);
        }
        // Each logging page lies in one reported page. Count logging pages from
        // the report's start: a region's page may be before it (then it isn't
        // among those taken).
        let distance = (i128::from(part.start) - i128::from(self.iova)) >> part.page_shift;
        let position = i128::from(first_word) * 64 + distance;
        let (first, shift) = (position.div_euclid(64), position.rem_euclid(64) as u32);
        let carry = shift_words(words, shift);
        let factor_shift = self.page_shift - part.page_shift;
        match usize::try_from(first) {
            Ok(first) => {
                self.add_aligned(first, words, factor_shift);
                self.add_aligned(first + words.len(), &mut [carry], factor_shift);
            }
            // The first word only has bits in the second's place.
            Err(_) => {
                self.add_aligned(0, words.get_mut(1..).unwrap_or_default(), factor_shift);
                self.add_aligned(words.len() - 1, &mut [carry], factor_shift);
            }
        }
    }

    /// Adds words with a bit for each logging page from `64 * first` on, where
    /// 2^shift of these are a reported page. They are used up.
    fn add_aligned(&mut self, first: usize, words: &mut [u64], shift: u32) {
        if shift == 0 {
            return self.or_words(first, words);
        }
        squeeze_all(words, shift);
        // Words of which one word is made up.
        let parts = 1 << shift.min(6);
        let (head, rest) = words.split_at(words.len().min(first.wrapping_neg() % parts));
        let (body, tail) = rest.split_at(rest.len() - rest.len() % parts);
        self.add_parts(first, head, shift);
        let first = first + head.len();
        let mut joined = [0; GROUP_WORDS / 2];
        match shift {
            1 => join::<2>(body, &mut joined),
            2 => join::<4>(body, &mut joined),
            3 => join::<8>(body, &mut joined),
            4 => join::<16>(body, &mut joined),
            5 => join::<32>(body, &mut joined),
            _ => join::<64>(body, &mut joined),
        }
        // No more words are harvested at once than fit.
        let joined = joined.get_mut(..body.len() / parts).unwrap_or_default();
        self.add_aligned(first / parts, joined, shift.saturating_sub(6));
        self.add_parts(first + body.len(), tail, shift);
    }

    /// Adds squeezed words one by one.
    fn add_parts(&mut self, first: usize, words: &[u64], shift: u32) {
        let target = |index: usize| index.checked_shr(shift).unwrap_or(0);
        let (mut place, mut joined) = (target(first), 0);
        for (index, word) in (first..).zip(words) {
            if target(index) != place {
                self.or_words(place, &[joined]);
                (place, joined) = (target(index), 0);
            }
            let bit =
                if shift <= 6 { index << (6 - shift) } else { index.checked_shr(shift - 6).unwrap_or(0) };
            joined |= word << (bit % 64);
        }
        self.or_words(place, &[joined]);
    }

    /// Adds words of the reply from this one on. Zeroes may lie beyond its end.
    fn or_words(&mut self, first: usize, words: &[u64]) {
        if let [] | [0] = words {
            return;
        }
        self.make_valid(first);
        let Some(rest) = first.checked_mul(8).and_then(|first| self.bitmap.get_mut(first..)) else { return };
        let (targets, _) = rest.as_chunks_mut::<8>();
        let known = (self.valid - first).min(words.len());
        let (old, new) = words.split_at(known);
        let (old_targets, new_targets) = targets.split_at_mut(known.min(targets.len()));
        for (target, word) in old_targets.iter_mut().zip(old) {
            *target = (u64::from_le_bytes(*target) | word).to_le_bytes();
        }
        for (target, word) in new_targets.iter_mut().zip(new) {
            *target = word.to_le_bytes();
        }
        self.valid += new.len().min(new_targets.len());
    }

    /// Adds words of any page sizes and alignment: what each run of bits stands
    /// for, as addresses.
    fn add_runs(&mut self, part: &Part, first_word: u64, words: &[u64]) {
        for (number, word) in (first_word..).zip(words) {
            let (mut bit, mut rest) = (0, *word);
            while rest != 0 {
                bit += rest.trailing_zeros();
                rest = word >> bit;
                let count = rest.trailing_ones();
                let page = u128::from(number) * 64 + u128::from(bit);
                self.add_pages(part, page, page + u128::from(count));
                bit += count;
                rest = word.checked_shr(bit).unwrap_or(0);
            }
        }
    }

    /// Adds the logging pages from `first` to before `end`.
    fn add_pages(&mut self, part: &Part, first: u128, end: u128) {
        let start = u128::from(part.start);
        let first_address = (start + (first << part.page_shift)).max(self.iova.into());
        let last_address = (start + (end << part.page_shift) - 1).min(part.covered_last.into());
        let Some(last) = last_address.checked_sub(self.iova.into()) else { return };
        let first = (first_address - u128::from(self.iova)) >> self.page_shift;
        let last = last >> self.page_shift;
        // Both are below the number of bits in the reply.
        if let (Ok(first), Ok(last)) = (u64::try_from(first), u64::try_from(last)) {
            self.fill(first, last);
        }
    }

    /// Sets the bits `first` to `last` of the reply.
    fn fill(&mut self, first: u64, last: u64) {
        let (mut word, last_word) = (first / 64, last / 64);
        let mut bits = super::dirty::mask(first, if word == last_word { last } else { 63 });
        while word < last_word {
            self.or_words(word as usize, &[bits]);
            bits = !0;
            word += 1;
        }
        let tail = super::dirty::mask(0, last);
        self.or_words(last_word as usize, &[bits & tail]);
    }
}

/// Moves all bits up by less than a word; what falls out of the last word.
fn shift_words(words: &mut [u64], shift: u32) -> u64 {
    if shift == 0 {
        return 0;
    }
    let mut carry = 0;
    for word in words {
        let out = *word >> (64 - shift);
        *word = *word << shift | carry;
        carry = out;
    }
    carry
}

/// Puts the low bits of every `PARTS` words together to one.
fn join<const PARTS: usize>(words: &[u64], joined: &mut [u64]) {
    let (groups, _) = words.as_chunks::<PARTS>();
    for (joined, parts) in joined.iter_mut().zip(groups) {
        *joined = 0;
        for (number, part) in parts.iter().enumerate() {
            *joined |= part << (number * (64 / PARTS));
        }
    }
}

/// Makes one bit out of every 2^shift bits of each word, in its low bits.
fn squeeze_all(words: &mut [u64], shift: u32) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { squeeze_all_avx2(words, shift) };
    }
    squeeze_all_generic(words, shift);
}

/// The same, four words at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn squeeze_all_avx2(words: &mut [u64], shift: u32) {
    squeeze_all_generic(words, shift);
}

#[inline(always)]
fn squeeze_all_generic(words: &mut [u64], shift: u32) {
    match shift {
        1 => words.iter_mut().for_each(|word| *word = squeeze::<1>(*word)),
        2 => words.iter_mut().for_each(|word| *word = squeeze::<2>(*word)),
        3 => words.iter_mut().for_each(|word| *word = squeeze::<3>(*word)),
        4 => words.iter_mut().for_each(|word| *word = squeeze::<4>(*word)),
        5 => words.iter_mut().for_each(|word| *word = squeeze::<5>(*word)),
        _ => words.iter_mut().for_each(|word| *word = u64::from(*word != 0)),
    }
}

/// Makes one bit out of every 2^SHIFT bits, set if any of them is.
#[inline(always)]
fn squeeze<const SHIFT: u32>(mut word: u64) -> u64 {
    /// The low `1 << width` bits of every `1 << (width + gap)`.
    const fn lanes(width: u32, gap: u32) -> u64 {
        let ones = if width == 6 { !0 } else { (1 << (1 << width)) - 1 };
        let mut mask = 0;
        let mut at = 0;
        while at < 64 {
            mask |= ones << at;
            at += 1 << (width + gap);
        }
        mask
    }
    // The top bit of every 2^SHIFT: set, or carried into from below.
    let top = const { lanes(0, SHIFT) << ((1 << SHIFT) - 1) };
    word = (((word & !top) + !top) | word) & top;
    word >>= (1 << SHIFT) - 1;
    // Lanes of 2^width bits stand 2^(width + SHIFT) bits apart: push pairs of
    // them together.
    let masks = const {
        let mut masks = [0; 6];
        let mut width = 0;
        while width + SHIFT < 6 {
            masks[width as usize] = lanes(width + 1, SHIFT);
            width += 1;
        }
        masks
    };
    let mut width = 0;
    while width + SHIFT < 6 {
        let distance = (1 << (width + SHIFT)) - (1 << width);
        word = (word | word >> distance) & masks[width as usize];
        width += 1;
    }
    word
}
