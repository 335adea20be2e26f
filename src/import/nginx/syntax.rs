//! The language of nginx: directives with words, ended by `;` or a block, in files that include each other.

use super::super::{Files, ImportError, Place};
use glob::{MatchOptions, Pattern};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A directive with its words.
#[derive(Clone, Debug)]
pub(super) struct Directive {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) words: Vec<String>,
    /// The directives between `{` and `}`.
    pub(super) block: Vec<Directive>,
}

impl Directive {
    /// Returns a word, or an empty text.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// Returns the directive as the list of remarks shows it.
    pub(super) fn shown(&self) -> String {
        let mut shown = self.name.clone();
        for word in &self.words {
            shown.push(' ');
            shown.extend(word.chars().map(|char| if char.is_control() { ' ' } else { char }).take(60));
            if shown.len() > 100 {
                shown.push_str(" ...");
                break;
            }
        }
        shown
    }
}

/// The deepest nesting of blocks and of included files.
const DEEPEST: usize = 32;

/// The largest number of directives with all included files.
const MOST: usize = 200_000;

/// A `*` stands for a part of one name, and not for the `.` that hides a file.
pub(crate) const AS_IN_A_SHELL: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Returns the directives of a file and of those that it includes.
///
/// Relative names of `include` start at the folder of the main file, as nginx has it. `text` may also be what `nginx -T`
/// prints: then the included files stand in it.
pub(super) fn parse(file: &Path, text: &str, files: &dyn Files) -> Result<Vec<Directive>, ImportError> {
    let dump = dumped(text);
    let (file, text) = match dump.first() {
        Some((name, text)) => (name.clone(), *text),
        None => (file.to_owned(), text),
    };
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader { dump: &dump, files, folder, count: 0 };
    reader.file(&file, text, 0)
}

/// Returns the files of what `nginx -T` prints: each begins with a line of its name.
fn dumped(text: &str) -> Vec<(PathBuf, &str)> {
    const MARK: &str = "# configuration file ";
    let starts: Vec<usize> =
        text.match_indices(MARK).map(|(at, _)| at).filter(|at| *at == 0 || text.as_bytes()[at - 1] == b'\n').collect();
    let part = |(index, start): (usize, &usize)| {
        let part = &text[*start..starts.get(index + 1).copied().unwrap_or(text.len())];
        let (name, rest) = part[MARK.len()..].split_once('\n')?;
        Some((PathBuf::from(name.trim_end().trim_end_matches(':')), rest))
    };
    starts.iter().enumerate().filter_map(part).collect()
}

struct Reader<'a> {
    dump: &'a [(PathBuf, &'a str)],
    files: &'a dyn Files,
    folder: PathBuf,
    count: usize,
}

impl Reader<'_> {
    fn file(&mut self, file: &Path, text: &str, depth: usize) -> Result<Vec<Directive>, ImportError> {
        let mut words = Words { rest: text, line: 1, file: file.display().to_string().into() };
        self.block(&mut words, depth, false)
    }

    /// Reads directives up to the end of the file, or of the block.
    fn block(&mut self, words: &mut Words<'_>, depth: usize, is_inner: bool) -> Result<Vec<Directive>, ImportError> {
        if depth > DEEPEST {
            return Err(words.error("blocks or included files are nested too deeply"));
        }
        let (mut found, mut line): (Vec<Directive>, Vec<String>) = (Vec::new(), Vec::new());
        let mut place = words.place();
        loop {
            let (at, token) = words.next()?;
            if line.is_empty() {
                place = at;
            }
            let ends_block = match token {
                Token::Word(word) => {
                    line.push(word);
                    continue;
                }
                Token::Semicolon if line.is_empty() => return Err(words.error("unexpected `;`")),
                Token::Semicolon => false,
                Token::Open if line.is_empty() => return Err(words.error("unexpected `{`")),
                Token::Open => true,
                Token::Close | Token::End if !line.is_empty() => {
                    let message = format!("`{}` is not ended by `;` or a block", line[0]);
                    return Err(ImportError { place, message });
                }
                Token::Close if !is_inner => return Err(words.error("unexpected `}`")),
                Token::End if is_inner => return Err(words.error("a block is not closed: expected `}`")),
                Token::Close | Token::End => return Ok(found),
            };
            self.count += 1;
            if self.count > MOST {
                return Err(words.error("the files have too many directives"));
            }
            let mut all = std::mem::take(&mut line).into_iter();
            let mut directive = Directive {
                place: place.clone(),
                name: all.next().unwrap_or_default(),
                words: all.collect(),
                block: Vec::new(),
            };
            if ends_block && directive.name.ends_with("_by_lua_block") {
                words.skip_code()?;
            } else if ends_block {
                directive.block = self.block(words, depth + 1, true)?;
            }
            match directive.name == "include" && !ends_block {
                true => found.extend(self.include(&directive, depth)?),
                false => found.push(directive),
            }
        }
    }

    /// Returns the directives of included files. Files of types are left out: no translation needs them.
    fn include(&mut self, directive: &Directive, depth: usize) -> Result<Vec<Directive>, ImportError> {
        let pattern = self.folder.join(directive.word(0));
        let error = |message: String| ImportError { place: directive.place.clone(), message };
        let dump = self.dump;
        let named = Pattern::new(&pattern.to_string_lossy()).map_err(|reason| error(format!("include: {reason}")))?;
        let dumped: Vec<_> = dump.iter().filter(|(name, _)| named.matches_path_with(name, AS_IN_A_SHELL)).collect();
        let mut found = Vec::new();
        for (name, text) in &dumped {
            found.extend(self.file(name, text, depth + 1)?);
        }
        if !dumped.is_empty() || is_tuning(&pattern) {
            return Ok(found);
        }
        let names = self.files.matching(&pattern);
        if names.is_empty() && !directive.word(0).contains(['*', '?']) {
            return Err(error(format!("cannot read the included file {}", pattern.display())));
        }
        for name in names {
            let text =
                self.files.text(&name).map_err(|reason| error(format!("cannot read {}: {reason}", name.display())))?;
            found.extend(self.file(&name, &text, depth + 1)?);
        }
        Ok(found)
    }
}

/// Returns whether an included file has only media types and parameters of other protocols.
fn is_tuning(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    matches!(name, "mime.types" | "fastcgi_params" | "fastcgi.conf" | "uwsgi_params" | "scgi_params")
}

enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
    End,
}

struct Words<'a> {
    rest: &'a str,
    line: usize,
    file: Rc<str>,
}

impl Words<'_> {
    fn place(&self) -> Place {
        Place { file: Rc::clone(&self.file), line: self.line }
    }

    fn error(&self, message: &str) -> ImportError {
        ImportError { place: self.place(), message: message.to_owned() }
    }

    fn take(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let char = chars.next()?;
        self.rest = chars.as_str();
        self.line += usize::from(char == '\n');
        Some(char)
    }

    fn next(&mut self) -> Result<(Place, Token), ImportError> {
        loop {
            let place = self.place();
            match self.rest.chars().next() {
                None => return Ok((place, Token::End)),
                Some('#') => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                Some(char) if char.is_ascii_whitespace() || char == '\u{feff}' => {
                    self.take();
                }
                Some(mark @ (';' | '{' | '}')) => {
                    self.take();
                    let token = match mark {
                        ';' => Token::Semicolon,
                        '{' => Token::Open,
                        _ => Token::Close,
                    };
                    return Ok((place, token));
                }
                Some(quote @ ('"' | '\'')) => {
                    self.take();
                    return Ok((place, Token::Word(self.quoted(quote)?)));
                }
                Some(_) => return Ok((place, Token::Word(self.bare()))),
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, ImportError> {
        let (start, mut word) = (self.place(), String::new());
        while let Some(char) = self.take() {
            match char {
                '\\' => self.escaped(&mut word),
                char if char == quote => return Ok(word),
                char => word.push(char),
            }
        }
        Err(ImportError { place: start, message: format!("a quote is not closed: expected `{quote}`") })
    }

    fn bare(&mut self) -> String {
        let mut word = String::new();
        while let Some(next) = self.rest.chars().next() {
            match next {
                // `${name}`
                '{' if word.ends_with('$') => {
                    while let Some(char) = self.take() {
                        word.push(char);
                        if char == '}' {
                            break;
                        }
                    }
                }
                ';' | '{' => break,
                char if char.is_ascii_whitespace() => break,
                '\\' => {
                    self.take();
                    self.escaped(&mut word);
                }
                char => {
                    self.take();
                    word.push(char);
                }
            }
        }
        word
    }

    /// A backslash stays, as regular expressions need it, except before quotes, itself and the letters of white space.
    fn escaped(&mut self, word: &mut String) {
        match self.take() {
            Some(char @ ('"' | '\'' | '\\')) => word.push(char),
            Some('t') => word.push('\t'),
            Some('r') => word.push('\r'),
            Some('n') => word.push('\n'),
            Some(char) => word.extend(['\\', char]),
            None => word.push('\\'),
        }
    }

    /// Skips code in Lua up to its `}`: braces in strings and comments do not count.
    fn skip_code(&mut self) -> Result<(), ImportError> {
        let (start, mut depth) = (self.place(), 1);
        while let Some(char) = self.take() {
            match char {
                '{' => depth += 1,
                '}' => depth -= 1,
                quote @ ('"' | '\'') => {
                    self.quoted(quote)?;
                }
                '-' if self.rest.starts_with('-') => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                _ => {}
            }
            if depth == 0 {
                return Ok(());
            }
        }
        Err(ImportError { place: start, message: "a block of code is not closed: expected `}`".to_owned() })
    }
}
