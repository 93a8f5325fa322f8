//! Values whose copies cost nothing.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that its copies share until one of them is changed.
///
/// A group of a thousand workers is kept as it was while it is changed, and as it was written down last. Most changes
/// concern none of the workers.
#[derive(Debug)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// A value of its own.
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// Whether the two are copies and neither was changed since. Two that are not may be equal all the same.
    pub(crate) fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_copy_of(other) || self.0 == other.0
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_one_copy_is_none_of_the_other() {
        let before = Shared::new(vec![1, 2]);
        let mut after = before.clone();
        assert!(after.is_copy_of(&before));
        after.push(3);
        assert_eq!((&**before, &**after), ([1, 2].as_slice(), [1, 2, 3].as_slice()));
        assert!(!after.is_copy_of(&before) && after != before);
        after.pop();
        assert_eq!(after, before);
    }
}
