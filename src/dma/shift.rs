//! Arrays of atomics whose elements move up or down by one, under the eyes of
//! readers: these see the elements in any state in between, but each one whole.

use std::sync::atomic::Ordering::{self, Relaxed, Release};

use super::sizes::LINE_WORDS;

type Load<A, V> = fn(&A, Ordering) -> V;
type Store<A, V> = fn(&A, V, Ordering);

/// Makes room at `at` in the first `len` elements, and fills it.
#[inline(always)]
pub(super) fn insert<A, V: Copy>(
    array: &[A],
    len: usize,
    at: usize,
    value: V,
    load: Load<A, V>,
    store: Store<A, V>,
) {
    let mut moved = array.get(at..=len).unwrap_or_default();
    let mut carried = value;
    // Several at a time: their loads don't wait for stores, nor these for a loop.
    while let Some((line, rest)) = moved.split_first_chunk::<LINE_WORDS>() {
        let old = line.each_ref().map(|element| load(element, Relaxed));
        for (element, next) in line.iter().zip(old) {
            // Release, so that who sees a pointer sees what it points to.
            store(element, carried, Release);
            carried = next;
        }
        moved = rest;
    }
    for element in moved {
        let next = load(element, Relaxed);
        store(element, carried, Release);
        carried = next;
    }
}

/// Closes the gap at `at` in the first `len` elements.
#[inline(always)]
pub(super) fn remove<A, V: Copy>(array: &[A], len: usize, at: usize, load: Load<A, V>, store: Store<A, V>) {
    let Some((mut gap, mut moved)) = array.get(at..len).and_then(<[A]>::split_first) else { return };
    while let Some((line, rest)) = moved.split_first_chunk::<LINE_WORDS>() {
        let old = line.each_ref().map(|element| load(element, Relaxed));
        for (element, value) in line.iter().zip(old) {
            store(std::mem::replace(&mut gap, element), value, Release);
        }
        moved = rest;
    }
    for element in moved {
        store(std::mem::replace(&mut gap, element), load(element, Relaxed), Release);
    }
}
