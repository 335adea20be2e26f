//! The directives that are in effect at one place: those of its block, else those of the blocks around it.

use super::syntax::Directive;

/// The blocks around a place, the innermost last.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    levels: Vec<&'a [Directive]>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(block: &'a [Directive]) -> Scope<'a> {
        Scope { levels: vec![block] }
    }

    /// Returns the scope of a block in this one.
    pub(super) fn inner(&self, block: &'a [Directive]) -> Scope<'a> {
        let mut levels = self.levels.clone();
        levels.push(block);
        Scope { levels }
    }

    /// Returns the directives of the innermost block.
    pub(super) fn own(&self) -> &'a [Directive] {
        self.levels.last().copied().unwrap_or_default()
    }

    /// Returns the directives of these names, from the innermost block that has any of them.
    pub(super) fn all(&self, names: &[&str]) -> Vec<&'a Directive> {
        let of = |block: &&'a [Directive]| -> Vec<&'a Directive> {
            block.iter().filter(|directive| names.contains(&&*directive.name)).collect()
        };
        self.levels.iter().rev().map(of).find(|found| !found.is_empty()).unwrap_or_default()
    }

    /// Returns the directives of some names, each from the innermost block that has it.
    pub(super) fn in_effect(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<&'a Directive> {
        let mut found: Vec<&'a Directive> = Vec::new();
        for directive in self.levels.iter().rev().flat_map(|block| block.iter()) {
            if is_wanted(&directive.name) && found.iter().all(|known| known.name != directive.name) {
                found.push(directive);
            }
        }
        found
    }

    /// Returns the directive of a name that is in effect.
    pub(super) fn find(&self, name: &str) -> Option<&'a Directive> {
        self.all(&[name]).into_iter().next()
    }
}
