//! The device migration state machine of the specification: which states there
//! are, which arcs lead directly from one to another, and which path a request
//! takes.

use crate::wire::DeviceState::{self, *};

/// The direct transitions.
pub const ARCS: [(DeviceState, DeviceState); 9] = [
    (Stop, Running),
    (Stop, StopCopy),
    (Stop, Resuming),
    (Running, Stop),
    (Running, PreCopy),
    (StopCopy, Stop),
    (Resuming, Stop),
    (PreCopy, Running),
    (PreCopy, StopCopy),
];

/// Whether state is being saved: such a state may begin or end a path, but is
/// never passed through.
pub fn is_saving(state: DeviceState) -> bool {
    matches!(state, PreCopy | StopCopy)
}

/// The states that a request to go from `from` to `to` enters, in order: the
/// shortest path without saving states in its middle. Empty if they are the
/// same; `None` if there is no such request: ERROR and the peer-to-peer states
/// are neither left nor entered this way, and STOP_COPY never leads to
/// PRE_COPY.
pub fn path(from: DeviceState, to: DeviceState) -> Option<&'static [DeviceState]> {
    Some(match (from, to) {
        (Stop, Stop)
        | (Running, Running)
        | (StopCopy, StopCopy)
        | (Resuming, Resuming)
        | (PreCopy, PreCopy) => &[],

        (Stop, Running) => &[Running],
        (Stop, StopCopy) => &[StopCopy],
        (Stop, Resuming) => &[Resuming],
        (Stop, PreCopy) => &[Running, PreCopy],

        (Running, Stop) => &[Stop],
        (Running, StopCopy) => &[Stop, StopCopy],
        (Running, Resuming) => &[Stop, Resuming],
        (Running, PreCopy) => &[PreCopy],

        (StopCopy, Stop) => &[Stop],
        (StopCopy, Running) => &[Stop, Running],
        (StopCopy, Resuming) => &[Stop, Resuming],

        (Resuming, Stop) => &[Stop],
        (Resuming, Running) => &[Stop, Running],
        (Resuming, StopCopy) => &[Stop, StopCopy],
        (Resuming, PreCopy) => &[Stop, Running, PreCopy],

        (PreCopy, Stop) => &[Running, Stop],
        (PreCopy, Running) => &[Running],
        (PreCopy, StopCopy) => &[StopCopy],
        (PreCopy, Resuming) => &[Running, Stop, Resuming],

        // The specification forbids it in so many words.
        (StopCopy, PreCopy) => return None,

        (Error | RunningP2p | PreCopyP2p, _) | (_, Error | RunningP2p | PreCopyP2p) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Breadth-first search over the arcs, not passing through saving states.
    fn search(from: DeviceState, to: DeviceState) -> Option<Vec<DeviceState>> {
        let mut ways = VecDeque::from([vec![from]]);
        while let Some(way) = ways.pop_front() {
            let last = *way.last().unwrap();
            if last == to {
                return Some(way[1..].to_vec());
            }
            if way.len() > 1 && is_saving(last) {
                continue;
            }
            for (_, next) in ARCS.iter().filter(|(a, _)| *a == last) {
                if !way.contains(next) {
                    ways.push_back([way.clone(), vec![*next]].concat());
                }
            }
        }
        None
    }

    #[test]
    fn every_request_takes_the_shortest_path() {
        let usable = [Stop, Running, StopCopy, Resuming, PreCopy];
        for from in DeviceState::ALL {
            for to in DeviceState::ALL {
                let forbidden =
                    (from, to) == (StopCopy, PreCopy) || !usable.contains(&from) || !usable.contains(&to);
                let expected = if forbidden { None } else { search(from, to) };
                assert_eq!(path(from, to).map(<[_]>::to_vec), expected, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn shortest_paths_are_unique() {
        for (from, to) in DeviceState::ALL.into_iter().flat_map(|a| DeviceState::ALL.map(|b| (a, b))) {
            let Some(found) = path(from, to) else { continue };
            let mut at = vec![(from, 0)];
            let mut ways = 0;
            while let Some((state, steps)) = at.pop() {
                if steps == found.len() {
                    ways += usize::from(state == to);
                } else if steps == 0 || !is_saving(state) {
                    at.extend(ARCS.iter().filter(|(a, _)| *a == state).map(|(_, b)| (*b, steps + 1)));
                }
            }
            assert_eq!(ways, 1, "{from:?} to {to:?}");
        }
    }
}
