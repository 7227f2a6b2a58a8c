//! Blocks, as the short way of marking looks at them.

use std::sync::atomic::Ordering::Relaxed;

use super::super::bitmap::{GROUP_BITS, Name, all_words};
use super::super::sizes::GROUP_WORDS;
use super::super::sync::AtomicU64;

/// Each bit at an end of a word, a group or the block, beside it, and far beyond:
/// it is there if it is set and, where there are several groups, its group noted.
#[test]
fn a_bit_that_is_set_and_noted() {
    for class in 0..=GROUP_WORDS.ilog2() + 8 {
        let words: Vec<AtomicU64> = (0..all_words(class)).map(|_| AtomicU64::new(0)).collect();
        // SAFETY: the words are there as long as the block.
        let block = unsafe { Name::new(words.as_ptr(), class).unwrap().block() }.unwrap();
        let bits = 64_u64 << class;
        let ends = [0, 64, GROUP_BITS, 63 * GROUP_BITS, 64 * GROUP_BITS, 65 * GROUP_BITS, bits / 2, bits];
        for bit in ends.iter().flat_map(|end| [end.saturating_sub(1), *end, end + 1]) {
            assert!(!block.has_noted(bit), "class {class}, bit {bit}");
            if bit >= bits {
                continue;
            }
            let word = &words[(bit / 64) as usize];
            word.store(1 << (bit % 64), Relaxed);
            let needs_note = bits > GROUP_BITS;
            assert_eq!(block.has_noted(bit), !needs_note, "class {class}, bit {bit}, not noted");
            block.note((bit / GROUP_BITS) as usize);
            assert!(block.has_noted(bit), "class {class}, bit {bit}, noted");
            assert!(!block.has_noted(bit ^ 1), "class {class}, beside {bit}");
            word.store(!(1 << (bit % 64)), Relaxed);
            assert!(!block.has_noted(bit), "class {class}, all but {bit}");
            word.store(0, Relaxed);
            block.take_notes((bit / GROUP_BITS / 64) as usize, !0);
        }
        for far in [bits + 64, 1 << 32, 1 << 57, 1 << 58, u64::MAX] {
            assert!(far < bits || !block.has_noted(far), "class {class}, bit {far}");
        }
    }
}
