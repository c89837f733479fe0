//! Directories of every kind over and against directories of every kind.

use super::{Case, python};

/// Sources and targets, one pair for each kind of both.
pub(super) const PAIRS: &str = r"
for s in lower merged opaque moved; do for t in lower opaque gone emptied; do
    mkdir -p m/$s-$t/below t/$s-$t x/$s-$t/below y/$s-$t/under
    echo $s >m/$s-$t/old; echo $s >m/$s-$t/below/deep; echo $s >x/$s-$t/old; echo $s >x/$s-$t/below/deep
    echo $t >y/$s-$t/hidden; echo $t >y/$s-$t/under/deep
    [ $t = lower ] || echo $t >t/$s-$t/hidden
done; done
";

/// `make(kind, path)` turns a directory of the image into one of that kind.
const KINDS: &str = r"
import ctypes, shutil
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags):
        raise OSError(ctypes.get_errno(), f'{a} {b}')
def refused(errno, act, *args):
    try:
        act(*args)
    except OSError as error:
        assert error.errno == errno, (args, error)
        return
    assert False, args
def tree(top):
    return sorted(os.path.relpath(os.path.join(d, n), top) for d, dirs, files in os.walk(top) for n in dirs + files)
LOWER, FRESH = ['below', 'below/deep', 'old'], ['fresh']
MERGED = ['added', 'below', 'below/deep', 'below/new', 'old']
WANT = {'lower': LOWER, 'merged': MERGED, 'opaque': FRESH, 'moved': MERGED}
def make(kind, path):
    if kind == 'opaque':
        shutil.rmtree(path); os.mkdir(path)
        open(path + '/fresh', 'w').write('fresh')
    if kind == 'moved':
        os.rename(path, 'elsewhere'); os.mkdir(path); os.rmdir(path); os.rename('elsewhere', path + '-2')
        path += '-2'
    if kind in ('merged', 'moved'):
        open(path + '/added', 'w').write('added'); open(path + '/below/new', 'w').write('new')
    return path
def clear(kind, path):
    if kind in ('gone', 'opaque'):
        shutil.rmtree(path)
    if kind == 'opaque':
        os.mkdir(path)
    if kind == 'emptied':
        for name in os.listdir(path): os.remove(path + '/' + name)
SOURCES, TARGETS = ('lower', 'merged', 'opaque', 'moved'), ('lower', 'opaque', 'gone', 'emptied')
PAIRS = [(s, t, f'{s}-{t}') for s in SOURCES for t in TARGETS]
";

const MOVED: &str = r"
for s, t, pair in PAIRS:
    assert tree('t/' + pair) == WANT[s], (pair, tree('t/' + pair))
    assert tree('m/' + pair) == [], (pair, tree('m/' + pair))
    assert not os.path.exists(f'm/{pair}-2')
    for name in WANT[s]:
        if not os.path.isdir(f't/{pair}/{name}'): open(f't/{pair}/{name}').read()
";

const SWAPPED: &str = r"
for s, t, pair in PAIRS:
    a = f'x/{pair}-2' if s == 'moved' else f'x/{pair}'
    there = [] if t == 'opaque' else ['under', 'under/deep'] if t == 'emptied' else ['hidden', 'under', 'under/deep']
    assert tree('y/' + pair) == WANT[s], (pair, tree('y/' + pair))
    assert tree(a) == there, (pair, tree(a))
    assert open(f'y/{pair}/old').read() == s + '\n' if 'old' in WANT[s] else True
";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "rename_over_any_directory",
        "A directory of the image, a merged, an opaque or a moved one replaces an empty directory of any kind or a removed name, and what was hidden on either side stays hidden.",
        |at| {
            python(at, &format!("{KINDS}{}{MOVED}", r"
for s, t, pair in PAIRS:
    source = make(s, 'm/' + pair)
    clear(t, 't/' + pair)
    number = os.stat(source).st_ino
    os.rename(source, 't/' + pair)
    assert os.stat('t/' + pair).st_ino == number, pair
    # What is made under the old name begins empty.
    os.path.exists('m/' + pair) or os.mkdir('m/' + pair)
"));
        },
    )
    .after(|at| {
        python(at, &format!("{KINDS}{MOVED}"));
    }),
    Case::new(
        "exchange_of_any_directories",
        "RENAME_EXCHANGE swaps directories of all kinds with all that is in them, and keeps the number of each.",
        |at| {
            python(at, &format!("{KINDS}{}{SWAPPED}", r"
for s, t, pair in PAIRS:
    a, b = make(s, 'x/' + pair), 'y/' + pair
    if t == 'opaque': clear(t, b)
    if t == 'emptied': os.remove(b + '/hidden')
    numbers = os.stat(a).st_ino, os.stat(b).st_ino
    renameat2(a, b, 2)
    assert (os.stat(b).st_ino, os.stat(a).st_ino) == numbers, pair
"));
        },
    )
    .after(|at| {
        python(at, &format!("{KINDS}{SWAPPED}"));
    }),
    Case::new(
        "renames_refused",
        "rename(2) refuses with the errno of a local filesystem: unknown and contradicting flags, a directory against what is below it, dots, missing names, files with a slash.",
        |at| {
            python(at, &format!("{KINDS}{}", r"
before = tree('.')
refused(22, renameat2, 'dir', 'dir/sub', 2)
refused(22, renameat2, 'dir/sub', 'dir', 2)
refused(22, renameat2, 'one', 'file', 3)
refused(22, renameat2, 'one', 'file', 8)
refused(22, renameat2, 'one', 'file', 6)
refused(2, renameat2, 'file', 'none', 2)
refused(2, renameat2, 'none', 'file', 2)
refused(17, renameat2, 'file', 'file', 1)
refused(17, renameat2, 'one', 'two', 1)
refused(17, renameat2, 'one', 'sym', 1)
refused(16, os.rename, 'dir/.', 'new')
refused(16, os.rename, 'dir', 'empty/..')
refused(20, os.rename, 'file', 'new/')
refused(20, os.rename, 'file/x', 'new')
refused(2, os.rename, 'none', 'new')
refused(2, os.rename, 'file', 'none/new')
refused(39, os.rename, 'dir/sub', 'dir')
refused(39, os.rename, 'dir', 'm')
refused(21, os.rename, 'fifo', 'empty')
refused(20, os.rename, 'empty', 'null')
os.rename('dir/inner', 'dir/inner'); renameat2('dir', 'dir', 2); renameat2('one', 'two', 2)
assert tree('.') == before
"));
        },
    ),
];
