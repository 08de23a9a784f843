//! The rules of the house that no compiler and no lint knows, checked on the text of the files.
//!
//! Each rule is a function from text to offences, so that its own test can plant one; one test a
//! rule then puts it on the repository. Rules about code look at it [`bare`]: comments and the
//! insides of literals are blanked, so that words about a thing are not taken for the thing.
//!
//! What is checked: who may import whom, who knows the engine, what the simulated code may not
//! touch, that files say what they are, that documents name what exists, names of files,
//! leftovers, and paths of somebody's machine. An offence is told as `file:line: what, and what
//! to do instead`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Code that the simulator runs: files, and folders with all that is in them.
const PURE: &[&str] = &[
    "shard/src/group/core.rs",
    "shard/src/machine.rs",
    "shard/src/machine/",
    "shard/src/node.rs",
    "shard/src/node/",
    "shard/src/store.rs",
    "shard/src/store/",
    "shard/src/watch/hub.rs",
    "shard/src/lease.rs",
    "proto/src/map.rs",
    "router/src/aim.rs",
    "router/src/identify.rs",
    "router/src/api/cluster/addresses.rs",
    "router/src/lists.rs",
    "router/src/validate.rs",
    "router/src/api/watch/merge.rs",
    "router/src/api/watch/places.rs",
    "router/src/api/watch/watchers.rs",
];

/// What pure code may not name: clocks, the runtime, random sources.
const WORLDLY: &[&str] = &["Instant", "SystemTime", "tokio", "rand", "thread_rng", "getrandom"];

/// Modules of `std` that pure code may not name.
const WORLDLY_STD: &[&str] = &["fs", "net"];

/// Crates that speak to each other through `proto` only; `proto` itself knows none.
const APART: &[&str] = &["shard", "placement", "router"];

/// The only file that knows the engine's crate.
const ENGINE: (&str, &str) = ("shard/src/engine/fjall.rs", "fjall");

/// Names of patterns: a file is called after the thing that it holds.
const NAMELESS: &[&str] =
    &["util.rs", "helper.rs", "helpers.rs", "manager.rs", "common.rs", "types.rs", "mod.rs"];

/// Leftovers, and tests that do not say what they expect.
const LEFTOVERS: &[&str] = &["#[ignore", "todo!", "dbg!", "unimplemented!", "should_panic"];

/// Words that an essay has at least.
const ESSAY_WORDS: usize = 5;

/// Endings of files that people write.
const WRITTEN: &[&str] =
    &["rs", "toml", "md", "proto", "sh", "py", "go", "js", "json", "txt", "mod", "run"];

// === the rules ===

#[test]
fn shard_placement_and_router_never_name_each_other() {
    for name in APART.iter().chain(&["proto"]) {
        let others: Vec<&str> = APART.iter().copied().filter(|other| other != name).collect();
        for file in repository() {
            if file.path.starts_with(&format!("{name}/")) && file.is_rust() {
                agree(&file.path, imports(&file.bare, &others));
            }
        }
        let manifest = format!("{name}/Cargo.toml");
        agree(&manifest, depends(&read(&manifest), &others));
    }
}

#[test]
fn a_crate_that_names_another_is_found() {
    let others = &["router", "placement"];
    for planted in
        ["use router::Door;", "use {router::Door, std::fs};", "fn f(d: placement::Map) {}"]
    {
        assert_eq!(imports(&bare(planted), others).len(), 1, "{planted}");
    }
    for innocent in ["// use router::Door;", "use crate::router::Door;", "let router = 1;"] {
        assert_eq!(imports(&bare(innocent), others), [], "{innocent}");
    }
    let planted = [
        "[dependencies]\nrouter = { path = \"../router\" }",
        "[dev-dependencies]\nrouter.workspace = true",
        "[dependencies]\ndoor = { path = \"../router\" }",
        "[dependencies.placement]\nversion = \"1\"",
    ];
    for planted in planted {
        assert_eq!(depends(planted, others).len(), 1, "{planted}");
    }
    let innocent = "[package]\nname = \"router\"\n[dependencies]\ntonic = { features = \
                    [\"router\"] } # router\n";
    assert_eq!(depends(innocent, others), []);
}

#[test]
fn only_one_file_knows_the_engine() {
    let (file, engine) = ENGINE;
    assert!(!imports(&bare(&read(file)), &[engine]).is_empty(), "{file} does not use {engine}");
    for File { path, text, bare } in repository() {
        if path.ends_with(".rs") && path != file {
            agree(path, imports(bare, &[engine]));
        } else if path.ends_with("/Cargo.toml") && path != "shard/Cargo.toml" {
            agree(path, depends(text, &[engine]));
        }
    }
}

#[test]
fn who_knows_the_engine_is_found() {
    assert_eq!(imports(&bare("use fjall::Database;"), &["fjall"]).len(), 1);
    assert_eq!(imports(&bare("extern crate fjall;"), &["fjall"]).len(), 1);
    assert_eq!(imports(&bare("let d = fjall::open();"), &["fjall"]).len(), 1);
    // Our own module of the same name.
    assert_eq!(imports(&bare("pub mod fjall;\nuse shard::engine::fjall::E;"), &["fjall"]), []);
}

#[test]
fn pure_code_does_not_touch_the_world() {
    for pure in PURE {
        let within = |path: &str| path == *pure || (pure.ends_with('/') && path.starts_with(pure));
        let files: Vec<_> = repository().iter().filter(|file| within(&file.path)).collect();
        assert!(!files.is_empty(), "{pure} is gone: name the pure code where it is now");
        for file in files {
            agree(&file.path, worldly(&file.bare));
        }
    }
}

#[test]
fn a_touch_of_the_world_is_found() {
    let planted = [
        "use std::time::Instant;",
        "let now = SystemTime::now();",
        "use std::fs;",
        "use std::{collections::BTreeMap, net::TcpStream};",
        "let n = std::fs::read(p);",
        "tokio::spawn(f);",
        "let n: u64 = rand::random();",
    ];
    for planted in planted {
        assert_eq!(worldly(&bare(planted)).len(), 1, "{planted}");
    }
    let innocent = "// Instant\nuse std::time::Duration;\nlet operand = \"tokio\";\nlet fs = 1;";
    assert_eq!(worldly(&bare(innocent)), []);
}

#[test]
fn every_file_says_what_it_is() {
    for file in repository().iter().filter(|file| file.is_rust()) {
        agree(&file.path, essay(&file.text));
    }
}

#[test]
fn a_file_without_an_essay_is_found() {
    for planted in ["use std::fs;", "\n//! Late, but it has words enough.", "//! shard"] {
        assert_eq!(essay(planted).len(), 1, "{planted}");
    }
    assert_eq!(essay("//! What this is, and\n//! why it is so.\n\nuse a::b;"), []);
}

#[test]
fn documents_name_what_exists() {
    let tops = names_in(&root());
    let crates: Vec<&String> =
        tops.iter().filter(|top| root().join(top).join("src").is_dir()).collect();
    let exists = |path: &str| {
        // Where the talk is of one crate, a path may begin there.
        let within = |of: &&String| root().join(of).join("src").join(path).exists();
        root().join(path).exists() || crates.iter().any(within)
    };
    for File { path, text, .. } in repository() {
        if path.ends_with(".md") {
            let beside = root().join(path);
            let linked = |target: &str| beside.with_file_name(target).exists();
            agree(path, dead_paths(text, &tops, &exists));
            agree(path, dead_links(text, &linked));
        }
    }
}

#[test]
fn a_dead_path_is_found() {
    let tops = ["shard".to_owned(), "target".to_owned(), "tests".to_owned()];
    let exists = |path: &str| ["shard/src/log.rs", "tests/run.sh", "log/"].contains(&path);
    for planted in ["`shard/src/lag.rs`", "a\n`tests/runs.sh all`", "`lost.rs`", "`gone/`"] {
        assert_eq!(dead_paths(planted, &tops, &exists).len(), 1, "{planted}");
    }
    let innocent = "`shard/src/log.rs`, `tests/run.sh all`, `log/`, `host:port`, `--rounds 2/3`,\n\
                    `application/json`, `target/release/lost`, `target/lost.json`\n```\ncd shard/none.rs\n```\n";
    assert_eq!(dead_paths(innocent, &tops, &exists), []);
    assert_eq!(dead_links("see [log](lag.rs)", &exists).len(), 1);
    assert_eq!(dead_links("[x](https://x.y/z) [log](shard/src/log.rs#top) [y](#y)", &exists), []);
}

#[test]
fn files_are_called_after_what_they_hold() {
    for file in repository() {
        agree(&file.path, nameless(&file.path));
    }
}

#[test]
fn a_file_without_a_name_is_found() {
    assert_eq!(nameless("shard/src/util.rs").len(), 1);
    assert_eq!(nameless("shard/src/group/mod.rs").len(), 1);
    assert_eq!(nameless("shard/src/prototypes.rs"), []);
}

#[test]
fn nothing_is_left_over() {
    for file in repository().iter().filter(|file| file.is_rust()) {
        agree(&file.path, leftovers(&file.bare));
    }
}

#[test]
fn what_is_left_over_is_found() {
    for planted in
        ["#[ignore]", "#[ignore = \"slow\"]", "todo!()", "dbg!(x)", "#[should_panic(expected)]"]
    {
        assert_eq!(leftovers(&bare(planted)).len(), 1, "{planted}");
    }
    assert_eq!(leftovers(&bare("// todo!() later\nlet text = r#\"dbg!(\"x\")\"#;")), []);
}

#[test]
fn no_file_names_a_place_on_one_machine() {
    for file in repository() {
        agree(&file.path, places(&file.text));
    }
}

#[test]
fn a_place_on_one_machine_is_found() {
    for place in homes() {
        assert_eq!(places(&format!("cd {place}atoll")).len(), 1, "{place}");
        assert_eq!(places(&format!("https://example.org{place}x")), [], "{place}");
    }
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    assert_eq!(bare("let a = 'x'; // c"), "let a = ' ';     ");
    assert_eq!(bare("/* d /* e */\n */ g"), "            \n    g");
    assert_eq!(bare("fn g<'h>(i: &'h str)"), "fn g<'h>(i: &'h str)");
    assert_eq!(bare(r#"f("j\"k", '"', b'\'', l)"#), r#"f("    ", ' ', b'  ', l)"#);
    assert_eq!(bare("a\n\"b\nc\"\nd").lines().count(), 4);
    assert!(!bare("r##\"todo \"# todo\"##").contains("todo"));
}

// === what an offence is ===

/// A line, counted from 1, and what is wrong with it.
type Offence = (usize, String);

/// Fails with all offences of a file.
fn agree(path: &str, offences: Vec<Offence>) {
    let told: Vec<String> =
        offences.iter().map(|(line, what)| format!("{path}:{line}: {what}")).collect();
    assert!(told.is_empty(), "\n{}\n", told.join("\n"));
}

/// Offences of single lines.
fn by_line(text: &str, judge: impl Fn(&str) -> Option<String>) -> Vec<Offence> {
    let numbered = text.lines().enumerate();
    numbered.filter_map(|(at, line)| Some((at + 1, judge(line)?))).collect()
}

/// Places where bare code begins a path with one of these crates.
fn imports(bare: &str, crates: &[&str]) -> Vec<Offence> {
    by_line(bare, |line| {
        let named = crates.iter().find(|name| {
            words(line).any(|(at, word)| {
                let (before, after) = (line[..at].trim_end(), line[at + word.len()..].trim_start());
                let imported = before.ends_with("use") || before.ends_with("extern crate");
                word == **name && !before.ends_with("::") && (imported || after.starts_with("::"))
            })
        })?;
        Some(format!("names the crate {named}, which only others may know (ARCHITECTURE.md)"))
    })
}

/// Places where a manifest depends on one of these crates, under whatever name.
fn depends(manifest: &str, crates: &[&str]) -> Vec<Offence> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (at, line) in manifest.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        }
        let key = line.split(['=', '.']).next().unwrap_or("").trim();
        for name in crates {
            let listed = section.ends_with("dependencies") && key == *name;
            let header =
                line.starts_with('[') && section.ends_with(&format!("dependencies.{name}"));
            let renamed = line.contains(&format!("/{name}\""))
                || line.contains(&format!("package = \"{name}\""));
            if listed || header || (section.contains("dependencies") && renamed) {
                found.push((at + 1, format!("depends on {name} (ARCHITECTURE.md)")));
            }
        }
    }
    found
}

/// Places where bare code names a clock, a file, a socket, the runtime or chance.
fn worldly(bare: &str) -> Vec<Offence> {
    let mut found = by_line(bare, |line| {
        let named = |name: &&&str| words(line).any(|(_, word)| word == **name);
        let named = WORLDLY.iter().find(named)?;
        Some(format!("names {named}: pure code is told the time and given its chance"))
    });
    for (at, _) in bare.match_indices("std::") {
        let path = bare[at..].split(';').next().unwrap_or("");
        let direct = path.trim_start_matches("std::");
        let named = WORLDLY_STD.iter().find(|module| match direct.strip_prefix('{') {
            // One `use` of many things.
            Some(many) => words(many).any(|(_, word)| word == **module),
            None => words(direct).next() == Some((0, **module)),
        });
        if let Some(module) = named {
            let line = bare[..at].lines().count().max(1);
            found.push((line, format!("names std::{module}: pure code does no I/O")));
        }
    }
    found
}

/// Says whether a file begins with an essay.
fn essay(text: &str) -> Vec<Offence> {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let essay: Vec<&str> = lines.collect();
    let essay = essay.join(" ");
    if essay.split_whitespace().count() >= ESSAY_WORDS && essay.contains(['.', ':']) {
        return Vec::new();
    }
    vec![(1, "does not begin with `//!` and what it is, in a sentence".to_owned())]
}

/// Words in backticks that look like paths and lead nowhere. `tops`: what lies at the top.
fn dead_paths(text: &str, tops: &[String], exists: &dyn Fn(&str) -> bool) -> Vec<Offence> {
    let looks = |word: &str| {
        let spelled = |letter: char| letter.is_ascii_alphanumeric() || "_-./".contains(letter);
        let ending = Path::new(word).extension().and_then(|ending| ending.to_str());
        let first = word.split('/').next().unwrap_or("");
        word.chars().all(spelled)
            && !word.starts_with(['-', '/'])
            // What a build makes is there on one machine and not yet on another.
            && !BUILT.contains(&first)
            && (word.ends_with('/')
                || ending.is_some_and(|ending| WRITTEN.contains(&ending))
                || (word.contains('/') && tops.iter().any(|top| top == first)))
    };
    let mut fenced = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let spans = line.split('`').skip(1).step_by(2).filter(|_| !fenced);
        let paths = spans.flat_map(str::split_whitespace).filter(|word| looks(word));
        let dead = paths.filter(|path| !exists(path));
        found.extend(dead.map(|path| (at + 1, format!("names {path}, which does not exist"))));
    }
    found
}

/// Links to files that do not exist.
fn dead_links(text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Offence> {
    by_line(text, |line| {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let files = targets.filter(|target| !target.contains("://"));
        let mut files = files.filter_map(|target| target.split('#').next());
        let dead = files.find(|target| !target.is_empty() && !exists(target))?;
        Some(format!("links to {dead}, which does not exist"))
    })
}

/// Says whether a file is called after a pattern.
fn nameless(path: &str) -> Vec<Offence> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let told = || (1, format!("{name} does not say what it holds: call it after that"));
    NAMELESS.contains(&name).then(told).into_iter().collect()
}

/// Places where bare code has what should not stay.
fn leftovers(bare: &str) -> Vec<Offence> {
    by_line(bare, |line| {
        let left = LEFTOVERS.iter().find(|left| line.contains(**left))?;
        Some(format!("{left} is not to stay"))
    })
}

/// Places where a text names a path that only some machine has.
fn places(text: &str) -> Vec<Offence> {
    by_line(text, |line| {
        let alone = |at: usize| {
            let before = line[..at].chars().next_back();
            !before.is_some_and(|letter| letter.is_ascii_alphanumeric() || "_-.}".contains(letter))
        };
        let homes = homes();
        let named =
            homes.iter().find(|home| line.match_indices(**home).any(|(at, _)| alone(at)))?;
        Some(format!("names a place below {named}, which other machines do not have"))
    })
}

/// Where people keep their things; spelled so that this file does not name them.
fn homes() -> [&'static str; 3] {
    [concat!("/", "work", "/"), concat!("/", "root", "/"), concat!("/", "home", "/")]
}

// === reading ===

/// Identifiers of a line, and where they begin.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + line[rest..].find(part)?;
        let length = line[start..].find(|letter| !part(letter)).unwrap_or(line.len() - start);
        rest = start + length;
        Some((start, &line[start..rest]))
    })
}

/// Rust code with comments and the insides of literals blanked, line by line the same.
fn bare(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let at = |index: usize| letters.get(index).copied().unwrap_or('\0');
    let mut bare = String::with_capacity(text.len());
    let mut index = 0;
    while index < letters.len() {
        let before = index.checked_sub(1).map_or('\0', at);
        let length = match at(index) {
            '/' if at(index + 1) == '/' => {
                letters[index..].iter().take_while(|letter| **letter != '\n').count()
            }
            '/' if at(index + 1) == '*' => comment(&letters[index..]),
            'r' if !(before.is_alphanumeric() && before != 'b') && before != '_' => {
                raw_string(&letters[index..])
            }
            '"' => string(&letters[index..], '"'),
            // A lifetime has no second quote so close.
            '\'' if at(index + 1) == '\\' || at(index + 2) == '\'' => {
                string(&letters[index..], '\'')
            }
            _ => 0,
        };
        if length == 0 {
            bare.push(at(index));
            index += 1;
            continue;
        }
        let quote = |letter: char| matches!(letter, '"' | '\'' | '\n');
        for (place, letter) in letters[index..].iter().take(length).enumerate() {
            let edge = (place == 0 || place + 1 == length) && quote(*letter);
            bare.push(if edge || *letter == '\n' { *letter } else { ' ' });
        }
        index += length;
    }
    bare
}

/// Length of the block comment that begins here.
fn comment(letters: &[char]) -> usize {
    let mut depth = 0;
    let mut index = 0;
    while index < letters.len() {
        match letters.get(index..index + 2) {
            Some(['/', '*']) => (depth, index) = (depth + 1, index + 2),
            Some(['*', '/']) => (depth, index) = (depth - 1, index + 2),
            _ => index += 1,
        }
        if depth == 0 {
            return index;
        }
    }
    letters.len()
}

/// Length of the literal between `quote`s that begins here.
fn string(letters: &[char], quote: char) -> usize {
    let mut index = 1;
    while index < letters.len() {
        match letters[index] {
            '\\' => index += 2,
            letter if letter == quote => return index + 1,
            _ => index += 1,
        }
    }
    letters.len()
}

/// Length of the raw string that begins here; 0 if none does.
fn raw_string(letters: &[char]) -> usize {
    let hashes = letters[1..].iter().take_while(|letter| **letter == '#').count();
    if letters.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut end = vec!['"'];
    end.extend(vec!['#'; hashes]);
    let body = 2 + hashes;
    let found = letters[body..].windows(end.len()).position(|window| window == end);
    found.map_or(letters.len(), |found| body + found + end.len())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").into()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file of the repository.
struct File {
    /// From the root.
    path: String,
    text: String,
    /// As [`bare`] leaves it; empty if it is not Rust.
    bare: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Every file that people write.
fn repository() -> &'static [File] {
    static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
        let with_text = |path: String| {
            let text = read(&path);
            let bare = if path.ends_with(".rs") { bare(&text) } else { String::new() };
            File { path, text, bare }
        };
        written().into_iter().map(with_text).collect()
    });
    &FILES
}

/// Folders of what a build makes or fetches.
const BUILT: [&str; 2] = ["target", "node_modules"];

/// Paths of the files that people write.
fn written() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for name in names_in(&root().join(&folder)) {
            let path = format!("{folder}{name}");
            let full = root().join(&path);
            if full.is_dir() {
                // Git's own is none of ours; `.ci` is.
                let ours = !BUILT.contains(&name.as_str());
                if ours && (!name.starts_with('.') || name == ".ci") {
                    folders.push(format!("{path}/"));
                }
                continue;
            }
            let ending = full.extension().and_then(|ending| ending.to_str());
            if ending.is_some_and(|ending| WRITTEN.contains(&ending)) || folder == ".ci/" {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
