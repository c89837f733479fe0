//! Hard links: what they may lead to, and those that came before their target.

use std::collections::BTreeMap;

use super::{Builder, Content, Fault, Found, Id, Inode, Late, Misfit, Pending, shown};

/// What lies below a tar, for those of its hard links that came where it did not have their
/// target.
pub(in crate::index) trait Below {
    /// What `target` leads to there, as far as `above`, the tar that has the link, does not hide
    /// it.
    ///
    /// # Errors
    /// [`Misfit`] if that cannot be told.
    fn find(&mut self, above: &mut Builder, target: &[u8]) -> Result<Option<Id>, Misfit>;
    /// An inode there.
    fn inode(&self, id: Id) -> Option<&Inode>;
    /// One of its inodes has so many more names.
    fn named(&mut self, id: Id, names: u32);
}

/// Nothing: an image of one tar.
impl Below for () {
    fn find(&mut self, _above: &mut Builder, _target: &[u8]) -> Result<Option<Id>, Misfit> {
        Ok(None)
    }
    fn inode(&self, _id: Id) -> Option<&Inode> {
        None
    }
    fn named(&mut self, _id: Id, _names: u32) {}
}

/// What a hard link leads to in the end.
#[derive(Debug, Clone, Copy)]
pub(in crate::index) enum Head {
    /// An inode of this tar.
    Own(Id),
    /// One that lies below it.
    Below(Id),
}

impl Builder {
    /// Checks that a hard link may lead to `id`, and carries no other content than it has.
    pub(super) fn check_link(
        &self,
        id: Id,
        target: &[u8],
        data: Option<u64>,
    ) -> Result<(), Misfit> {
        // What a link that waits leads to is not known yet.
        if matches!(self.late.get(&id), Some(Late::Link(_))) {
            return Ok(());
        }
        fits(self.inode(id), target, data)
    }

    /// Follows each hard link that came before its target; gives what each leads to in the end,
    /// and counts the names there. What lies `below` was there when the link came, so it is
    /// before what has come later.
    pub(in crate::index) fn resolve_links(
        &mut self,
        below: &mut dyn Below,
    ) -> Result<BTreeMap<Id, Head>, Fault> {
        let mut heads = BTreeMap::new();
        let lives = |id: Id| self.inode(id).is_some_and(|inode| inode.nlink > 0);
        let waits = |late: &Late| matches!(late, Late::Link(_));
        let pending: Vec<Id> = self
            .late
            .iter()
            .filter(|&(&id, late)| waits(late) && lives(id))
            .map(|(&id, _)| id)
            .collect();
        for &first in &pending {
            let mut chain = Vec::new();
            let mut at = first;
            let head = loop {
                if let Some(&head) = heads.get(&at) {
                    break head;
                }
                let link = match self.late.get(&at) {
                    Some(Late::Link(link)) => link.clone(),
                    _ => break Head::Own(at),
                };
                let fail = |misfit| Fault {
                    entry: shown(&link.path),
                    offset: link.offset,
                    misfit,
                };
                let barred = |misfit| {
                    let (target, misfit) = (shown(&link.target), Box::new(misfit));
                    fail(Misfit::LinkTarget { target, misfit })
                };
                if !link.barred
                    && let Some(head) = below.find(self, &link.target).map_err(barred)?
                {
                    chain.push(at);
                    break Head::Below(head);
                }
                let next = match self.find(&link.target) {
                    Ok(Found::Inode(next)) => next,
                    Ok(Found::Nothing) => {
                        return Err(fail(Misfit::LinkToNothing(shown(&link.target))));
                    }
                    Err(misfit) => return Err(barred(misfit)),
                };
                chain.push(at);
                if next == at {
                    return Err(fail(Misfit::LinkToItself));
                }
                // A chain longer than there are links has come around.
                if chain.len() > pending.len() {
                    return Err(fail(Misfit::LinkCycle(shown(&link.target))));
                }
                at = next;
            };
            for link in chain {
                if let Some(Late::Link(Pending {
                    path,
                    target,
                    data,
                    offset,
                    ..
                })) = self.late.get(&link)
                {
                    let inode = match head {
                        Head::Own(head) => self.inode(head),
                        Head::Below(head) => below.inode(head),
                    };
                    fits(inode, target, *data).map_err(|misfit| Fault {
                        entry: shown(path),
                        offset: *offset,
                        misfit,
                    })?;
                }
                heads.insert(link, head);
            }
        }
        for (&link, &head) in &heads {
            let names = self.inode(link).map_or(0, |inode| inode.nlink);
            match head {
                Head::Below(head) => below.named(head, names),
                Head::Own(head) => {
                    if let Some(inode) = self.inode_mut(head) {
                        inode.nlink = inode.nlink.saturating_add(names);
                    }
                }
            }
        }
        Ok(heads)
    }
}

/// Checks that a hard link to `inode` may be, and carries no other content than it has.
fn fits(inode: Option<&Inode>, target: &[u8], data: Option<u64>) -> Result<(), Misfit> {
    let target = || shown(target);
    let differs = |carried, size| {
        Err(Misfit::LinkContent {
            target: target(),
            carried,
            size,
        })
    };
    match (inode.map(|inode| &inode.content), data) {
        (Some(Content::Dir { .. }), _) => Err(Misfit::LinkToDirectory(target())),
        (Some(Content::File { size, .. }), Some(carried)) if carried != *size => {
            differs(carried, *size)
        }
        (Some(Content::File { .. }) | None, _) | (_, None) => Ok(()),
        (Some(_), Some(carried)) => differs(carried, 0),
    }
}
