//! Random stacks of layers against a model: a map of paths to inodes, to which each layer's
//! whiteouts are applied, then its entries.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// What an entry of a layer is.
#[derive(Debug, Clone)]
pub(crate) enum What {
    File,
    Dir,
    Symlink(&'static str),
    HardLink(String),
    Whiteout,
    Opaque,
}

pub(crate) type Layer = Vec<(String, What)>;

/// An inode: what tells it from others, and for a symbolic link its target.
#[derive(Debug, PartialEq)]
enum Node {
    /// Layer and length.
    File(usize, u64),
    Dir,
    Symlink(&'static str),
}

type State = BTreeMap<String, Rc<Node>>;

/// Why the model gives up.
#[derive(Debug)]
enum Stop {
    /// The layer is to be refused.
    Refused,
    /// A whiteout behind a hard link, which may be one to a symbolic link.
    Unclear,
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

fn cut(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// All directories above a path, the highest first, without the root.
fn above(path: &str) -> Vec<&str> {
    let ends = path.char_indices().filter(|&(_, c)| c == '/');
    ends.map(|(at, _)| &path[..at]).collect()
}

/// Where the directory `name` in `dir` is, through links.
fn directory(state: &State, dir: &str, name: &str, links: &mut u32) -> Option<String> {
    let mut at = dir.to_owned();
    let mut todo: Vec<String> = vec![name.to_owned()];
    while let Some(name) = todo.pop() {
        match &*name {
            "" | "." => continue,
            ".." => {
                at = cut(&at).0.to_owned();
                continue;
            }
            _ => {}
        }
        let next = join(&at, &name);
        match &**state.get(&next)? {
            Node::Dir => at = next,
            Node::File(..) => return None,
            Node::Symlink(target) => {
                *links += 1;
                if *links > 40 {
                    return None;
                }
                if target.starts_with('/') {
                    at.clear();
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
        }
    }
    Some(at)
}

/// A layer's own entries by path.
struct Own<'a> {
    layer: usize,
    entries: BTreeMap<&'a str, (usize, &'a What)>,
    /// Directories without an entry.
    implied: BTreeSet<&'a str>,
    /// The inodes by entry.
    made: RefCell<BTreeMap<usize, Rc<Node>>>,
}

impl<'a> Own<'a> {
    fn new(layer: usize, of: &'a Layer) -> Result<Self, Stop> {
        let mut entries = BTreeMap::new();
        for (n, (path, what)) in of.iter().enumerate() {
            if !matches!(what, What::Whiteout | What::Opaque) {
                entries.insert(path.as_str(), (n, what));
            }
        }
        let mut implied = BTreeSet::new();
        for path in entries.keys() {
            for dir in above(path) {
                match entries.get(dir) {
                    Some((_, What::Dir)) => {}
                    Some(_) => return Err(Stop::Refused),
                    None => drop(implied.insert(dir)),
                }
            }
        }
        Ok(Self {
            layer,
            entries,
            implied,
            made: RefCell::default(),
        })
    }

    /// The directory of lower layers at `path`.
    fn enter(&self, state: &State, path: &str, whiteout: bool) -> Result<Option<String>, Stop> {
        let mut at = Some(String::new());
        let mut links = 0;
        let whole = join(path, "x");
        for so_far in above(&whole) {
            let own = self.entries.get(so_far).map(|(_, what)| *what);
            match own {
                Some(What::Symlink(_)) if whiteout => return Err(Stop::Refused),
                Some(What::HardLink(_)) if whiteout => return Err(Stop::Unclear),
                Some(What::File) if whiteout => return Ok(None),
                _ => {}
            }
            let Some(dir) = at else { continue };
            let name = cut(so_far).1;
            at = if matches!(own, Some(What::Dir)) {
                let next = join(&dir, name);
                matches!(state.get(&next).map(|n| &**n), Some(Node::Dir)).then_some(next)
            } else {
                directory(state, &dir, name, &mut links)
            };
        }
        Ok(at)
    }

    /// The inode that an entry makes or leads to.
    fn node(&self, state: &State, path: &str, depth: usize) -> Result<Rc<Node>, Stop> {
        let (came, what) = self.entries.get(path).ok_or(Stop::Refused)?;
        let target = match what {
            What::Dir => return Ok(Rc::new(Node::Dir)),
            What::HardLink(target) => target,
            _ => unreachable!(),
        };
        if depth > self.entries.len() || target == path {
            return Err(Stop::Refused);
        }
        let earlier = |path: &str| self.entries.get(path).filter(|(n, _)| n < came);
        let barred = above(target).iter().any(|dir| {
            let there = earlier(dir);
            there.is_some_and(|(_, what)| !matches!(what, What::Dir))
        });
        if earlier(target).is_none() && !barred {
            let (dir, name) = cut(target);
            if let Some(dir) = self.enter(state, dir, false)?
                && let Some(node) = state.get(&join(&dir, name))
            {
                return Ok(node.clone());
            }
        }
        self.own_node(state, target, depth + 1)
    }

    fn own_node(&self, state: &State, path: &str, depth: usize) -> Result<Rc<Node>, Stop> {
        let (n, what) = self.entries.get(path).ok_or(Stop::Refused)?;
        // The same entry is the same inode, whoever asks.
        let made = |node: Node| {
            let mut made = self.made.borrow_mut();
            made.entry(*n).or_insert_with(|| Rc::new(node)).clone()
        };
        match what {
            What::File => Ok(made(Node::File(self.layer, size(self.layer, *n)))),
            What::Symlink(target) => Ok(made(Node::Symlink(target))),
            _ => self.node(state, path, depth),
        }
    }
}

/// A file's length tells which entry made it.
fn size(layer: usize, n: usize) -> u64 {
    (layer * 100 + n + 1) as u64
}

fn remove(state: &mut State, path: &str) {
    let below = format!("{path}/");
    state.retain(|name, _| name != path && !name.starts_with(&below));
}

fn apply(state: &mut State, layer: usize, of: &Layer) -> Result<(), Stop> {
    let own = Own::new(layer, of)?;
    let mut gone = Vec::new();
    for (path, what) in of {
        match what {
            What::Whiteout => {
                let (dir, name) = cut(path);
                gone.extend(own.enter(state, dir, true)?.map(|dir| join(&dir, name)));
            }
            What::Opaque => {
                if let Some(dir) = own.enter(state, path, true)? {
                    let below = state.keys().filter(|name| cut(name).0 == dir);
                    gone.extend(below.cloned());
                }
            }
            _ => {}
        }
    }
    gone.iter().for_each(|path| remove(state, path));

    let mut nodes = BTreeMap::new();
    for &path in own.entries.keys() {
        let node = own.own_node(state, path, 0)?;
        if matches!(own.entries[path].1, What::HardLink(_)) && *node == Node::Dir {
            return Err(Stop::Refused);
        }
        nodes.insert(path, node);
    }
    for &path in &own.implied {
        nodes.insert(path, Rc::new(Node::Dir));
    }
    let mut todo = VecDeque::from([(String::new(), String::new())]);
    // Directory, its inode, the name there, and the layer's own path.
    let mut detours: VecDeque<(String, Option<Rc<Node>>, String, String)> = VecDeque::new();
    loop {
        let (from, into) = if let Some(pair) = todo.pop_front() {
            pair
        } else if let Some((dir, node, name, from)) = detours.pop_front() {
            // Not where something else has come in the directory's place.
            let same = match (state.get(&dir), &node) {
                (Some(now), Some(then)) => Rc::ptr_eq(now, then),
                (None, None) => dir.is_empty(),
                _ => false,
            };
            let into = same
                .then(|| directory(state, &dir, &name, &mut 0))
                .flatten();
            (from, into.ok_or(Stop::Refused)?)
        } else {
            return Ok(());
        };
        let children: Vec<_> = nodes
            .iter()
            .filter(|(path, _)| cut(path).0 == from)
            .collect();
        for (path, node) in children {
            let name = cut(path).1;
            let place = join(&into, name);
            let old = state.get(&place).cloned();
            match (&**node, old.as_deref()) {
                (Node::Dir, Some(Node::Dir)) => todo.push_back((path.to_string(), place)),
                (Node::Dir, Some(old)) if own.implied.contains(path) => {
                    if matches!(old, Node::File(..)) {
                        return Err(Stop::Refused);
                    }
                    let dir = state.get(&into).cloned();
                    detours.push_back((into.clone(), dir, name.to_owned(), path.to_string()));
                }
                (Node::Dir, _) => {
                    remove(state, &place);
                    state.insert(place.clone(), node.clone());
                    todo.push_back((path.to_string(), place));
                }
                _ => {
                    remove(state, &place);
                    state.insert(place, node.clone());
                }
            }
        }
    }
}

/// As [`super::list`] shows it.
fn shown(state: &State) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (path, node) in state {
        let mut line = match &**node {
            Node::Dir => format!("/{path}/"),
            Node::File(layer, size) => format!("/{path} {layer}:{size}"),
            Node::Symlink(target) => format!("/{path} -> {target}"),
        };
        let same: Vec<_> = state
            .iter()
            .filter(|(_, other)| Rc::ptr_eq(node, other))
            .collect();
        if same.len() > 1 {
            let by_parts = |path: &String| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            let first = same
                .iter()
                .map(|(path, _)| *path)
                .min_by_key(|path| by_parts(path));
            line += &format!(" =/{} {}", first.unwrap(), same.len());
        }
        all.insert(line);
    }
    all
}

fn tar(layer: usize, of: &Layer) -> Tar {
    let mut tar = Tar::new();
    for (n, (path, what)) in of.iter().enumerate() {
        let (dir, name) = cut(path);
        tar = match what {
            What::File => tar.file(path, &vec![b'x'; usize::try_from(size(layer, n)).unwrap()]),
            What::Dir => tar.dir(path),
            What::Symlink(target) => tar.symlink(path, target),
            What::HardLink(target) => tar.hard_link(path, target),
            What::Whiteout => tar.file(&join(dir, &format!(".wh.{name}")), b""),
            What::Opaque => tar.file(&join(path, ".wh..wh..opq"), b""),
        };
    }
    tar
}

fn path() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let deep = prop_oneof![4 => Just(1), 4 => Just(2), 1 => Just(3_usize)];
    let names = deep.prop_flat_map(move |deep| prop::collection::vec(name(), deep));
    names.prop_map(|names| names.join("/"))
}

fn what() -> impl Strategy<Value = What> {
    let targets = vec![
        "a",
        "b",
        "c",
        "/a",
        "/b/c",
        "..",
        "../b",
        "a/../c",
        "/",
        "no",
        "../../c/.",
    ];
    prop_oneof![
        6 => Just(What::File),
        5 => Just(What::Dir),
        3 => prop::sample::select(targets).prop_map(What::Symlink),
        5 => path().prop_map(What::HardLink),
        3 => Just(What::Whiteout),
        1 => Just(What::Opaque),
    ]
}

pub(crate) fn layer() -> impl Strategy<Value = Layer> {
    prop::collection::vec((path(), what()), 1..9).prop_map(|mut layer| {
        // Of entries, each path once: what comes twice is the business of a single tar.
        let mut seen = BTreeSet::new();
        layer.retain(|(path, what)| {
            matches!(what, What::Whiteout | What::Opaque) || seen.insert(path.clone())
        });
        layer
    })
}

/// The tars of those of `layers` that the model takes, each on those before it.
pub(crate) fn good_layers(layers: &[Layer]) -> Vec<Tar> {
    let mut state = State::new();
    let mut good = Vec::new();
    for layer in layers {
        let mut next = state.clone();
        if apply(&mut next, good.len(), layer).is_ok() {
            good.push(tar(good.len(), layer));
            state = next;
        }
    }
    good
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(1000)
    })]
    #[test]
    fn layers_are_what_the_model_says(layers in prop::collection::vec(layer(), 1..7)) {
        let mut state = State::new();
        let mut good = Vec::new();
        for layer in &layers {
            let position = good.len();
            let mut next = state.clone();
            let applied = apply(&mut next, position, layer);
            good.push(tar(position, layer));
            if let Err(stop) = &applied {
                let got = flat(&good).map(|flat| list(&flat));
                prop_assert!(got.is_err() || matches!(stop, Stop::Unclear), "{got:?}");
                good.pop();
            } else {
                state = next;
            }
        }
        let got = flat(&good).map_err(TestCaseError::fail)?;
        let got: BTreeSet<String> = list(&got).into_iter().skip(1).collect();
        prop_assert_eq!(got, shown(&state));
    }
}
