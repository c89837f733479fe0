//! Hard links: what they may lead to, and those that came before their target.

use std::collections::BTreeMap;

use super::{Builder, Fault, Found, Holds, Id, Misfit, Node, Pending, shown};

impl Builder {
    /// Checks that a hard link may lead to `id`, and carries no other content than it has.
    pub(super) fn check_link(
        &self,
        id: Id,
        target: &[u8],
        data: Option<u64>,
    ) -> Result<(), Misfit> {
        let target = || shown(target);
        match (self.nodes.get(id).map(|n| &n.holds), data) {
            (Some(Holds::Dir { .. }), _) => Err(Misfit::LinkToDirectory(target())),
            (Some(Holds::File { size, .. } | Holds::Sparse { size, .. }), Some(carried))
                if carried != *size =>
            {
                Err(Misfit::LinkContent {
                    target: target(),
                    carried,
                    size: *size,
                })
            }
            (Some(Holds::File { .. } | Holds::Sparse { .. } | Holds::Pending(_)) | None, _)
            | (_, None) => Ok(()),
            (Some(_), Some(carried)) => Err(Misfit::LinkContent {
                target: target(),
                carried,
                size: 0,
            }),
        }
    }

    /// Follows each hard link that came before its target; gives what each leads to in the end,
    /// and counts the names there.
    pub(super) fn resolve_links(&mut self) -> Result<BTreeMap<Id, Id>, Fault> {
        let mut heads = BTreeMap::new();
        let pending: Vec<Id> = (0..self.nodes.len())
            .filter(|&id| {
                self.nodes
                    .get(id)
                    .is_some_and(|n| n.names > 0 && matches!(n.holds, Holds::Pending(_)))
            })
            .collect();
        for &first in &pending {
            let mut chain = Vec::new();
            let mut at = first;
            let head = loop {
                if let Some(&head) = heads.get(&at) {
                    break head;
                }
                let Some(Holds::Pending(link)) = self.nodes.get(at).map(|n| &n.holds) else {
                    break at;
                };
                let Pending { path, target, .. } = &**link;
                let fail = |misfit| Fault {
                    entry: shown(path),
                    offset: self.nodes.get(at).map_or(0, |n| n.offset),
                    misfit,
                };
                let next = match self.find(target) {
                    Ok(Found::Node(next)) => next,
                    Ok(Found::Nothing) => return Err(fail(Misfit::LinkToNothing(shown(target)))),
                    Err(misfit) => {
                        let (target, misfit) = (shown(target), Box::new(misfit));
                        return Err(fail(Misfit::LinkTarget { target, misfit }));
                    }
                };
                chain.push(at);
                if next == at {
                    return Err(fail(Misfit::LinkToItself));
                }
                // A chain longer than there are links has come around.
                if chain.len() > pending.len() {
                    return Err(fail(Misfit::LinkCycle(shown(target))));
                }
                at = next;
            };
            for link in chain {
                if let Some(Node {
                    holds: Holds::Pending(pending),
                    offset,
                    ..
                }) = self.nodes.get(link)
                {
                    let Pending { path, target, data } = &**pending;
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
            let names = self.nodes.get(link).map_or(0, |n| n.names);
            if let Some(node) = self.nodes.get_mut(head) {
                node.names = node.names.saturating_add(names);
            }
        }
        Ok(heads)
    }
}
