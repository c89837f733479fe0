//! Hard links: what they may lead to, and those that came before their target.

use std::collections::BTreeMap;

use super::{Builder, Content, Fault, Found, Id, Late, Misfit, Pending, shown};

impl Builder {
    /// Checks that a hard link may lead to `id`, and carries no other content than it has.
    pub(super) fn check_link(
        &self,
        id: Id,
        target: &[u8],
        data: Option<u64>,
    ) -> Result<(), Misfit> {
        let target = || shown(target);
        let differs = |carried, size| {
            Err(Misfit::LinkContent {
                target: target(),
                carried,
                size,
            })
        };
        match (self.inode(id).map(|inode| &inode.content), data) {
            (Some(Content::Dir { .. }), _) => Err(Misfit::LinkToDirectory(target())),
            (Some(Content::File { size, .. }), Some(carried)) if carried != *size => {
                differs(carried, *size)
            }
            (Some(Content::File { .. }) | None, _) | (_, None) => Ok(()),
            // What a link that waits leads to is not known yet.
            (Some(_), _) if matches!(self.late.get(&id), Some(Late::Link(_))) => Ok(()),
            (Some(_), Some(carried)) => differs(carried, 0),
        }
    }

    /// Follows each hard link that came before its target; gives what each leads to in the end,
    /// and counts the names there.
    pub(super) fn resolve_links(&mut self) -> Result<BTreeMap<Id, Id>, Fault> {
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
                    _ => break at,
                };
                let fail = |misfit| Fault {
                    entry: shown(&link.path),
                    offset: link.offset,
                    misfit,
                };
                let next = match self.find(&link.target) {
                    Ok(Found::Inode(next)) => next,
                    Ok(Found::Nothing) => {
                        return Err(fail(Misfit::LinkToNothing(shown(&link.target))));
                    }
                    Err(misfit) => {
                        let (target, misfit) = (shown(&link.target), Box::new(misfit));
                        return Err(fail(Misfit::LinkTarget { target, misfit }));
                    }
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
                })) = self.late.get(&link)
                {
                    self.check_link(head, target, *data)
                        .map_err(|misfit| Fault {
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
            if let Some(inode) = self.inode_mut(head) {
                inode.nlink = inode.nlink.saturating_add(names);
            }
        }
        Ok(heads)
    }
}
