//! Which commands of ours the client has not answered yet.

/// Commands of ours that may be unanswered. Once there are so many, no further
/// one is sent before the client has answered one.
const MAX_UNANSWERED: usize = 64;

/// Ids of messages, in no order.
#[derive(Debug)]
pub struct MessageIds {
    ids: [u16; MAX_UNANSWERED],
    len: usize,
}

impl Default for MessageIds {
    fn default() -> MessageIds {
        MessageIds { ids: [0; MAX_UNANSWERED], len: 0 }
    }
}

impl MessageIds {
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Those of another process, as many as there can be.
    pub fn of(ids: &[u16]) -> MessageIds {
        let mut all = MessageIds::default();
        ids.iter().for_each(|id| all.insert(*id));
        all
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u16> {
        self.ids.iter().take(self.len).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_full(&self) -> bool {
        self.len == MAX_UNANSWERED
    }

    pub fn has(&self, msg_id: u16) -> bool {
        self.ids.iter().take(self.len).any(|id| *id == msg_id)
    }

    /// Adds one that is not there; not if there are too many.
    pub fn insert(&mut self, msg_id: u16) {
        if let Some(place) = self.ids.get_mut(self.len) {
            *place = msg_id;
            self.len = self.len.saturating_add(1);
        }
    }

    /// Whether it was there.
    pub fn remove(&mut self, msg_id: u16) -> bool {
        let Some(at) = self.ids.iter().take(self.len).position(|id| *id == msg_id) else {
            return false;
        };
        self.len = self.len.saturating_sub(1);
        if let (Some(last), Some(place)) = (self.ids.get(self.len).copied(), self.ids.get_mut(at)) {
            *place = last;
        }
        true
    }
}
