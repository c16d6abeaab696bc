//! The walls of the house: which room may use which other room, and which library. A violation names the file, the
//! line, what is forbidden there and the rule.
//!
//! The tables below are the rules, as `docs/architecture.md` states them; a new room or a new dependency fails until
//! it has its line here. Code under `#[cfg(test)]` is free: tests may open doors that the product must not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

// --- the rules -----------------------------------------------------------------------------------------------------

/// Which rooms a room may use, besides itself. A `room::module` line adds to its room's line for that module alone.
const ROOMS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("dimse", &["types"]),
    ("tls", &["types", "telemetry"]),
    ("receive", &["types", "dimse", "tls", "archive", "db", "jobs", "telemetry"]),
    ("archive", &["types"]),
    ("assemble", &["types", "db", "jobs", "telemetry"]),
    ("retention", &["types", "archive", "db", "telemetry"]),
    ("imaging", &["types"]),
    ("nn", &["types"]),
    ("infer", &["types", "imaging", "nn", "telemetry"]),
    // The worker is where a run is claimed and its outcome is written; the pipelines beside it know neither.
    ("infer::worker", &["archive", "db", "jobs", "report"]),
    // From a finished run to what its destinations are owed, in one transaction.
    ("infer::rendering", &["archive", "db", "jobs", "report"]),
    // Paints what the worker sends: reads images again, one at a time.
    ("infer::pictures", &["archive", "report"]),
    // Keeps the index of the reference library at what Postgres holds; the search itself (`nearest`) is pure.
    ("infer::library", &["db"]),
    ("report", &["types", "imaging"]),
    ("deliver", &["types", "archive", "db", "dimse", "jobs", "telemetry", "tls"]),
    ("db", &["types"]),
    ("jobs", &["types", "db"]),
    ("admin", &["types", "archive", "db", "report", "telemetry"]),
    // Evaluation runs the very pipeline that studies take.
    ("train", &["types", "imaging", "nn", "infer"]),
    ("config", &["types"]),
    ("telemetry", &["types", "config"]),
    // What the fuzz targets call; not part of the product.
    ("fuzzing", &["types", "archive", "config", "dimse", "imaging", "report"]),
];

/// Where everything is put together: these may use every room.
const ROOTS: &[&str] = &["app", "cli", "main", "lib"];

/// Libraries that belong to certain rooms, and why. `app` and `cli` are listed where they may use one too.
const LIBRARIES: &[(&[&str], &[&str], &str)] = &[
    (&["tch", "torch_sys"], &["nn", "train"], "tensors stay where the networks are"),
    (
        &["safetensors", "zip", "toml_edit"],
        &["nn", "train"],
        "weights are read, and brought into bundles, where the networks are",
    ),
    (&["futures_util"], &["nn"], "a measurement asks many networks at once"),
    (&["sqlx"], &["db", "jobs"], "SQL lives in db/, and jobs/ hands its pool to the queue"),
    (&["graphile_worker"], &["jobs"], "only jobs/ knows the queue"),
    (&["hmac"], &["types"], "pseudonyms are made in types/"),
    (&["libm"], &["train"], "the normal distribution of a test is statistics"),
    (&["csv"], &["cli", "train"], "lists of files are read on the command line and for training"),
    (&["chrono"], &["jobs", "app"], "the queue speaks chrono, and app/ asks it for the machine's time zone"),
    (&["dicom_ul"], &["dimse"], "PDUs and associations stay in dimse/"),
    (
        &[
            "dicom_core",
            "dicom_dictionary_std",
            "dicom_encoding",
            "dicom_object",
            "dicom_parser",
            "dicom_transfer_syntax_registry",
        ],
        &["dimse", "receive", "archive", "imaging", "report", "app", "cli"],
        "DICOM encoding is for the rooms that read or write it",
    ),
    (&["encoding_rs"], &["types"], "text is decoded in one place, for the index and for reports in other languages"),
    (&["dicom_pixeldata"], &["imaging"], "pixels are decoded in imaging/"),
    (&["jpeg_encoder"], &["imaging"], "pictures are encoded in imaging/"),
    (&["fluent_bundle", "fluent_syntax"], &["report"], "the sentences of results are report/'s"),
    (&["rustls"], &["tls", "dimse", "deliver"], "certificates are tls/'s, handshakes are dimse/'s and deliver/'s"),
    (&["tokio_rustls"], &["dimse", "deliver"], "handshakes are dimse/'s, and deliver/'s with web servers"),
    (&["rustls_native_certs"], &["tls"], "whom the operating system trusts is read in tls/"),
    (&["form_urlencoded", "hyper", "hyper_util", "http_body_util"], &["deliver"], "only deliver/ calls web servers"),
    (&["x509_parser"], &["tls"], "certificates are read in tls/"),
    (&["argon2"], &["receive", "cli"], "passcodes are checked in receive/ and hashed on the command line"),
    (&["axum"], &["admin", "app"], "HTTP ends in admin/"),
    (&["askama"], &["admin", "app", "train"], "pages are made in admin/, and reports of evaluations in train/"),
    (&["clap", "indicatif"], &["cli"], "only the command line talks to a terminal"),
    (
        &["tracing_subscriber"],
        &["telemetry", "config", "app", "cli"],
        "everybody emits events, telemetry/ collects them",
    ),
    (&["prometheus_client"], &["telemetry"], "metrics are registered in telemetry/"),
    (&["regex_syntax"], &[], "it is listed so that program and tests are built from the same libraries"),
    (&["sd_notify"], &["app", "cli"], "only the composition root talks to systemd"),
    (
        &["image", "ab_glyph", "fast_image_resize", "colorous"],
        &["imaging", "report", "admin", "train", "cli"],
        "pictures are made in imaging/",
    ),
    (&["toml"], &["config", "nn", "types", "train", "app", "cli"], "TOML is for configuration and bundle manifests"),
    (
        &["tokio", "tokio_util"],
        &[
            "dimse",
            "receive",
            "archive",
            "assemble",
            "retention",
            "nn",
            "infer",
            "deliver",
            "db",
            "jobs",
            "admin",
            "telemetry",
            "tls",
            "app",
            "cli",
            "main",
        ],
        "types/, imaging/, report/ and config/ are pure functions",
    ),
];

/// Libraries that every room may use.
const ANYWHERE: &[&str] = &[
    "anyhow",
    "base64",
    "bytes",
    "flate2",
    "fs_err",
    "libc",
    "rustix",
    "serde",
    "serde_json",
    "sha2",
    "strsim",
    "thiserror",
    "time",
    "tracing",
    "uuid",
];

/// Paths that a room must not name, and why.
const FORBIDDEN_PATHS: &[(&[&str], &[&str], &str)] = &[
    (
        &["types", "imaging", "report"],
        &[
            "std::fs",
            "fs_err",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::process",
            "std::thread",
        ],
        "this room is pure functions: no files, no network, no processes",
    ),
    (&["nn"], &["std::net", "std::process"], "neural networks need no other"),
    (&["dimse"], &["std::fs", "fs_err"], "dimse/ streams to whom it is told; files are archive/'s"),
];

/// Macros that write to the terminal.
const PRINTING: &[&str] = &["println", "print", "eprintln", "eprint", "dbg"];

// --- reading the sources -------------------------------------------------------------------------------------------

/// One thing that a source names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mention {
    line: usize,
    /// `crate::db::run`, `tch::Tensor`, or `println!`.
    path: Vec<String>,
}

/// What a source names, and the modules that it declares for tests only.
#[derive(Debug, Default)]
struct Source {
    mentions: Vec<Mention>,
    test_modules: Vec<String>,
}

impl Source {
    /// `module` is the path of the file's module: `["infer", "worker"]`.
    fn read(text: &str, module: &[String]) -> Result<Self, String> {
        let tokens = TokenStream::from_str(text).map_err(|error| error.to_string())?;
        let mut source = Self::default();
        source.walk(&tokens.into_iter().collect::<Vec<_>>(), module);
        Ok(source)
    }

    fn walk(&mut self, tokens: &[TokenTree], module: &[String]) {
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            if let Some(end) = end_of_test_item(tokens, at) {
                if let Some(name) = tokens.get(at..end).and_then(declared_module) {
                    self.test_modules.push(name);
                }
                at = end;
                continue;
            }
            match token {
                TokenTree::Ident(word) if word == "use" => {
                    let end = position(tokens, at, |token| is_punct(token, ';')).unwrap_or(tokens.len());
                    self.walk_use(&tokens[at + 1..end], &[], module);
                    at = end;
                }
                TokenTree::Ident(word) if word == "mod" && inline_module(tokens, at).is_some() => {
                    let (name, body) = inline_module(tokens, at).unwrap();
                    let mut inner = module.to_vec();
                    inner.push(name);
                    self.walk(&body, &inner);
                    at += 3;
                }
                TokenTree::Ident(word) => {
                    let line = word.span().start().line;
                    let mut path = vec![word.to_string()];
                    at += 1;
                    while is_path_separator(tokens, at)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 2)
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() == 1 && tokens.get(at).is_some_and(|token| is_punct(token, '!')) {
                        path[0].push('!');
                        self.mentions.push(Mention { line, path });
                    } else if path.len() > 1 {
                        self.mentions.push(Mention { line, path: absolute(path, module) });
                    }
                }
                TokenTree::Group(group) => {
                    self.walk(&group.stream().into_iter().collect::<Vec<_>>(), module);
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// The tree of one `use`, or of one branch of it.
    fn walk_use(&mut self, tokens: &[TokenTree], prefix: &[String], module: &[String]) {
        let mut path = prefix.to_vec();
        let mut at = 0;
        let mut line = None;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Ident(word) if word == "as" => at += 1, // and over the new name below
                TokenTree::Ident(word) => {
                    line.get_or_insert(word.span().start().line);
                    path.push(word.to_string());
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    self.walk_use(&group.stream().into_iter().collect::<Vec<_>>(), &path, module);
                    line = None;
                }
                TokenTree::Punct(punct) if punct.as_char() == ',' => {
                    self.end_of_branch(line.take(), std::mem::replace(&mut path, prefix.to_vec()), module);
                }
                _ => {}
            }
            at += 1;
        }
        self.end_of_branch(line, path, module);
    }

    fn end_of_branch(&mut self, line: Option<usize>, path: Vec<String>, module: &[String]) {
        if let Some(line) = line {
            self.mentions.push(Mention { line, path: absolute(path, module) });
        }
    }
}

/// `self` and `super` resolved to `crate::…`, the `self` of `room::{self}` dropped; anything else as it is.
fn absolute(mut path: Vec<String>, module: &[String]) -> Vec<String> {
    if path.len() > 1 {
        path.pop_if(|last| last == "self");
    }
    let mut base = module.to_vec();
    let mut rest = path.as_slice();
    match rest.first().map(String::as_str) {
        Some("self" | "super") => {}
        _ => return path,
    }
    while let Some(first) = rest.first() {
        match first.as_str() {
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        rest = &rest[1..];
    }
    ["crate".to_owned()].into_iter().chain(base).chain(rest.iter().cloned()).collect()
}

/// Where the item ends that a `#[cfg(test)]` at this place governs.
fn end_of_test_item(tokens: &[TokenTree], at: usize) -> Option<usize> {
    let TokenTree::Group(attribute) = tokens.get(at + 1)? else { return None };
    if !is_punct(tokens.get(at)?, '#') || attribute.stream().to_string().replace(' ', "") != "cfg(test)" {
        return None;
    }
    let ends = |token: &TokenTree| {
        is_punct(token, ';') || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    let is_use = matches!(tokens.get(at + 2), Some(TokenTree::Ident(word)) if word == "use");
    let end = if is_use { position(tokens, at, |token| is_punct(token, ';')) } else { position(tokens, at, ends) };
    Some(end.map_or(tokens.len(), |end| end + 1))
}

fn declared_module(item: &[TokenTree]) -> Option<String> {
    let keyword = position(item, 0, |token| matches!(token, TokenTree::Ident(word) if word == "mod"))?;
    match (item.get(keyword + 1)?, item.get(keyword + 2)?) {
        (TokenTree::Ident(name), end) if is_punct(end, ';') => Some(name.to_string()),
        _ => None,
    }
}

fn inline_module(tokens: &[TokenTree], at: usize) -> Option<(String, Vec<TokenTree>)> {
    match (tokens.get(at + 1)?, tokens.get(at + 2)?) {
        (TokenTree::Ident(name), TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
            Some((name.to_string(), body.stream().into_iter().collect()))
        }
        _ => None,
    }
}

fn position(tokens: &[TokenTree], from: usize, wanted: impl Fn(&TokenTree) -> bool) -> Option<usize> {
    tokens.iter().skip(from).position(wanted).map(|found| from + found)
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    [at, at + 1].iter().all(|&place| tokens.get(place).is_some_and(|token| is_punct(token, ':')))
}

// --- judging -------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    file: PathBuf,
    line: usize,
    forbidden: String,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: `{}`: {}", self.file.display(), self.line, self.forbidden, self.rule)
    }
}

/// The rooms that a module may use: its room's line and the lines of the modules on its path.
fn allowed_rooms(module: &[String]) -> Option<BTreeSet<&'static str>> {
    let room = module.first()?;
    ROOMS.iter().find(|(name, _)| name == room)?;
    let path = module.join("::");
    let applies = |name: &str| path == name || path.starts_with(&format!("{name}::"));
    Some(ROOMS.iter().filter(|(name, _)| applies(name)).flat_map(|(_, rooms)| rooms.iter().copied()).collect())
}

/// The first rule that a mention breaks.
fn broken_rule(mention: &Mention, module: &[String], known_rooms: &BTreeSet<String>) -> Option<String> {
    let room = module.first().map_or("lib", String::as_str);
    let first = mention.path[0].as_str();
    let list = |names: &[&str]| names.join(", ");

    if let Some(name) = first.strip_suffix('!') {
        let printing = PRINTING.contains(&name) && room != "cli";
        return printing.then(|| "only cli/ writes to the terminal; emit an event with `tracing`".to_owned());
    }
    for (rooms, paths, reason) in FORBIDDEN_PATHS {
        let named = |path: &&&str| {
            let parts: Vec<&str> = path.split("::").collect();
            mention.path.len() >= parts.len() && mention.path.iter().zip(&parts).all(|(named, part)| named == part)
        };
        if rooms.contains(&room) && paths.iter().any(|path| named(&path)) {
            return Some(format!("must not be named in {room}/: {reason}"));
        }
    }
    if first == "crate" {
        let used = mention.path.get(1)?;
        if used == room || !known_rooms.contains(used) || ROOTS.contains(&room) {
            return None;
        }
        let allowed = allowed_rooms(module).unwrap_or_default();
        return (!allowed.contains(used.as_str())).then(|| {
            let may: Vec<&str> = allowed.into_iter().collect();
            let may = if may.is_empty() { "no other room".to_owned() } else { list(&may) };
            format!("{} may use {may}", module.join("::"))
        });
    }
    let (_, rooms, reason) = LIBRARIES.iter().find(|(names, _, _)| names.contains(&first))?;
    (!rooms.contains(&room)).then(|| format!("only {} may use this library, {room}/ may not: {reason}", list(rooms)))
}

/// Judges sources given as (path below `src/`, text).
fn judge(files: &BTreeMap<PathBuf, String>) -> Vec<Violation> {
    let known_rooms: BTreeSet<String> = files.keys().filter_map(|file| module_of(file).first().cloned()).collect();
    let mut violations = Vec::new();
    let mut read = Vec::new();
    let mut for_tests = BTreeSet::new();
    for (file, text) in files {
        let module = module_of(file);
        match Source::read(text, &module) {
            Ok(source) => {
                for_tests.extend(
                    source.test_modules.iter().map(|name| [module.as_slice(), std::slice::from_ref(name)].concat()),
                );
                read.push((file, module, source));
            }
            Err(error) => violations.push(Violation {
                file: file.clone(),
                line: 1,
                forbidden: error,
                rule: "this file is not Rust".to_owned(),
            }),
        }
    }
    for (file, module, source) in read {
        if for_tests.iter().any(|test: &Vec<String>| module.starts_with(test)) {
            continue;
        }
        let room = module.first().map_or("lib", String::as_str);
        if !ROOTS.contains(&room) && allowed_rooms(&module).is_none() {
            violations.push(Violation {
                file: file.clone(),
                line: 1,
                forbidden: room.to_owned(),
                rule: "this room has no line in ROOMS of tests/architecture.rs and in docs/architecture.md".to_owned(),
            });
            continue;
        }
        for mention in source.mentions {
            if let Some(rule) = broken_rule(&mention, &module, &known_rooms) {
                let violation =
                    Violation { file: file.clone(), line: mention.line, forbidden: mention.path.join("::"), rule };
                if !violations.contains(&violation) {
                    violations.push(violation);
                }
            }
        }
    }
    violations
}

/// `infer/worker.rs` is `["infer", "worker"]`, `infer/mod.rs` is `["infer"]`, `lib.rs` is `[]`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    module
}

fn sources(folder: &Path, root: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, root, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.strip_prefix(root).unwrap().to_owned(), fs_err::read_to_string(&path).unwrap());
        }
    }
}

// --- the house -----------------------------------------------------------------------------------------------------

#[test]
fn no_room_knows_what_it_must_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    sources(&root, &root, &mut files);
    assert!(files.len() > 20, "only {} sources were found below {}", files.len(), root.display());
    let violations = judge(&files);
    let lines: Vec<String> = violations.iter().map(|violation| format!("src/{violation}")).collect();
    assert!(lines.is_empty(), "{} walls are broken:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn every_dependency_has_its_rooms() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: toml::Table = fs_err::read_to_string(manifest).unwrap().parse().unwrap();
    let declared: BTreeSet<String> =
        manifest["dependencies"].as_table().unwrap().keys().map(|name| name.replace('-', "_")).collect();
    let placed: BTreeSet<String> = LIBRARIES
        .iter()
        .flat_map(|(names, _, _)| names.iter())
        .chain(ANYWHERE)
        .map(|name| (*name).to_owned())
        .collect();
    let unplaced: Vec<&String> = declared.difference(&placed).collect();
    assert!(unplaced.is_empty(), "add these to LIBRARIES or ANYWHERE of tests/architecture.rs: {unplaced:?}");
}

#[test]
fn nothing_walks_backwards() {
    // Whether `from` reaches `to` over what rooms may use.
    fn reaches(from: &str, to: &str, seen: &mut BTreeSet<String>) -> bool {
        let used =
            ROOMS.iter().filter(|(name, _)| name.split("::").next() == Some(from)).flat_map(|(_, used)| used.iter());
        used.into_iter().any(|room| *room == to || (seen.insert((*room).to_owned()) && reaches(room, to, seen)))
    }
    for (room, _) in ROOMS {
        assert!(!reaches(room, room, &mut BTreeSet::new()), "the table lets {room} use itself over other rooms");
    }
}

// --- proof that the test sees ----------------------------------------------------------------------------------------

/// The violations of one source in a house that has all rooms.
fn violations_of(file: &str, text: &str) -> Vec<String> {
    let mut files: BTreeMap<PathBuf, String> = ROOMS
        .iter()
        .filter(|(room, _)| !room.contains("::"))
        .map(|(room, _)| (PathBuf::from(format!("{room}/mod.rs")), String::new()))
        .collect();
    files.insert(PathBuf::from(file), text.to_owned());
    judge(&files).iter().map(ToString::to_string).collect()
}

#[test]
fn a_forbidden_room_is_seen_however_it_is_named() {
    for text in [
        "use crate::db::run;",
        "use crate::{types::Uid, db::run};",
        "use crate::{types::{Uid, AeTitle}, db};",
        "use crate::db as elsewhere;",
        "pub(crate) use crate::db::*;",
        "use super::super::db::run;",
        "fn f() { crate::db::run::claim() }",
        "fn f() { let x = vec![crate::db::run::claim()]; }",
        "mod inner { fn f() { super::super::super::db::claim() } }",
        "#[cfg(not(test))] use crate::db::run;",
    ] {
        let violations = violations_of("imaging/lut.rs", text);
        assert_eq!(violations.len(), 1, "{text}: {violations:?}");
        assert!(violations[0].starts_with("imaging/lut.rs:1: `crate::db"), "{violations:?}");
        assert!(violations[0].ends_with("imaging::lut may use types"), "{violations:?}");
    }
}

#[test]
fn the_line_of_the_violation_is_named() {
    let text =
        "//! Purpose.\n\nuse crate::{\n    types::Uid,\n    deliver::retry,\n};\n\nfn f() {\n    tch::no_grad();\n}\n";
    let violations = violations_of("report/sr.rs", text);
    assert_eq!(violations.len(), 2, "{violations:?}");
    assert!(violations[0].starts_with("report/sr.rs:5: `crate::deliver::retry`: "), "{violations:?}");
    assert!(violations[1].starts_with("report/sr.rs:9: `tch::no_grad`: only nn, train may"), "{violations:?}");
}

#[test]
fn a_forbidden_library_is_seen() {
    for (file, text) in [
        ("infer/cxr.rs", "use tch::Tensor;"),
        ("admin/pages.rs", "use std::fmt; use sqlx::{PgPool};"),
        ("infer/worker.rs", "fn f() -> graphile_worker::Worker { todo() }"),
        ("cli/send.rs", "use dicom_ul::pdu;"),
        ("app.rs", "use sqlx::PgPool;"),
        ("nn/bundle.rs", "use dicom_core::Tag;"),
        ("infer/mod.rs", "use dicom_object::InMemDicomObject;"),
        ("imaging/mod.rs", "async fn f() { tokio::task::yield_now().await }"),
        ("imaging/mod.rs", "fn f() { std::fs::read(\"x\"); }"),
        ("report/mod.rs", "use std::{fmt, net::{IpAddr, TcpStream}};"),
        ("types/mod.rs", "use fs_err as fs;"),
        ("dimse/mod.rs", "fn f() { println!(\"x\") }"),
        ("lib.rs", "fn f() { dbg!(1); }"),
        ("cellar/mod.rs", "fn f() {}"),
    ] {
        assert_eq!(violations_of(file, text).len(), 1, "{file}: {text}: {:?}", violations_of(file, text));
    }
}

#[test]
fn what_is_allowed_is_left_alone() {
    for (file, text) in [
        ("infer/worker.rs", "use crate::{db::run, nn, types::Uid}; use self::batch::Batch; mod batch {}"),
        ("infer/worker/claim.rs", "use crate::db::run;"),
        ("nn/resnet.rs", "use tch::nn::Module; use super::device; use crate::nn::bundle;"),
        ("db/run.rs", "use sqlx::query; use super::Connection;"),
        ("cli/send.rs", "use crate::{db, nn, admin}; fn f() { println!(\"done\") }"),
        (
            "imaging/lut.rs",
            "// crate::db is not for us\nfn f() -> &'static str { \"crate::db::run, tch::Tensor, println!\" }",
        ),
        ("imaging/lut.rs", "/// Never `use sqlx::query`.\nfn f<'a>(x: &'a str) -> char { 'a' }"),
        ("imaging/lut.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::db::run; fn f() { println!(\"x\") } }"),
        ("imaging/lut.rs", "#[cfg(test)]\nuse tempfile::{self}; fn f() {}"),
        (
            "report/sr.rs",
            "use std::{fmt, time::Duration}; fn f(x: crate::imaging::Grey) -> time::Date { x.db::<u8>() }",
        ),
    ] {
        assert_eq!(violations_of(file, text), Vec::<String>::new(), "{file}: {text}");
    }
    // A module that exists for tests only is free, wherever its file lies.
    let files = BTreeMap::from([
        (PathBuf::from("dimse/mod.rs"), "#[cfg(test)]\nmod raw_peer;\nmod pdu;".to_owned()),
        (PathBuf::from("dimse/raw_peer.rs"), "use std::fs; fn f() { println!(\"x\") }".to_owned()),
        (PathBuf::from("dimse/pdu.rs"), "use std::fs;".to_owned()),
    ]);
    let violations = judge(&files);
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert_eq!(violations[0].file, Path::new("dimse/pdu.rs"));
}
