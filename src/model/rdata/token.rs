//! Words of presentation text (RFC 1035 section 5.1): blanks, quotation marks, parentheses, comments and escapes.
//!
//! Works on octets, because strings in old master files are not always UTF-8. Escapes stay in the words: only the reader
//! of a word knows whether `\.` is part of a label.

/// One word, with its escapes and without its quotation marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a [u8],
    pub quoted: bool,
    /// No blank stands between this word and the one before: `alpn="h2"` is the word `alpn=` and the joined word `h2`.
    pub joined: bool,
    /// Where the word starts in the text, in octets.
    pub at: usize,
}

/// What the lexer found next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lexeme<'a> {
    Token(Token<'a>),
    /// The end of a line outside parentheses, or of the text.
    LineEnd,
}

/// Why text cannot be split into words. `at` is the offending octet's place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    #[error("a quoted string must end on the line it starts on: expected a closing quotation mark")]
    UnclosedQuote { at: usize },
    #[error("an opening parenthesis is never closed: expected `)`")]
    UnclosedParenthesis { at: usize },
    #[error("a closing parenthesis without an opening one")]
    UnopenedParenthesis { at: usize },
    #[error(
        "`;` outside quotation marks would start a comment: put the text in quotation marks, or write `\\;`"
    )]
    Comment { at: usize },
    #[error("a line ends here and text follows: expected one record")]
    SecondLine { at: usize },
    #[error("an entry is longer than {limit} octets: a parenthesis may not be closed")]
    TooLong { at: usize, limit: usize },
}

impl LexError {
    pub fn at(&self) -> usize {
        match *self {
            Self::UnclosedQuote { at }
            | Self::UnclosedParenthesis { at }
            | Self::UnopenedParenthesis { at }
            | Self::Comment { at }
            | Self::SecondLine { at }
            | Self::TooLong { at, .. } => at,
        }
    }
}

/// Splits text into words.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Where each open parenthesis stands is not needed, only the outermost one: it is what gets reported.
    depth: usize,
    opened_at: usize,
    joined: bool,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self::starting_at(text, 0)
    }

    /// Starts at an octet of `text`, which must be the start of a line.
    pub fn starting_at(text: &'a [u8], at: usize) -> Self {
        Self {
            text,
            at,
            depth: 0,
            opened_at: 0,
            joined: false,
        }
    }

    /// The next octet to be read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether everything has been read.
    pub fn is_at_end(&self) -> bool {
        self.at >= self.text.len()
    }

    /// Whether a blank comes next: at the start of a line, the sign of an omitted owner.
    pub fn is_at_blank(&self) -> bool {
        matches!(self.text.get(self.at), Some(b' ' | b'\t'))
    }

    /// The next word or line end. After an error the lexer stands where it was found.
    pub fn next_lexeme(&mut self) -> Result<Lexeme<'a>, LexError> {
        loop {
            let at = self.at;
            let Some(&octet) = self.text.get(at) else {
                return self.end_of_text();
            };
            match octet {
                b' ' | b'\t' | b'\r' => self.skip(),
                b'\n' => {
                    self.skip();
                    if self.depth == 0 {
                        return Ok(Lexeme::LineEnd);
                    }
                }
                b';' => self.skip_line(),
                b'(' => {
                    if self.depth == 0 {
                        self.opened_at = at;
                    }
                    self.depth += 1;
                    self.skip();
                }
                b')' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or(LexError::UnopenedParenthesis { at })?;
                    self.skip();
                }
                b'"' => return self.quoted(),
                _ => return Ok(Lexeme::Token(self.word())),
            }
        }
    }

    /// Moves past the current line, whatever it holds.
    pub fn skip_line(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|octet| *octet == b'\n');
        self.at += length.unwrap_or(rest.len());
        self.joined = false;
    }

    fn skip(&mut self) {
        self.at += 1;
        self.joined = false;
    }

    fn end_of_text(&self) -> Result<Lexeme<'a>, LexError> {
        match self.depth {
            0 => Ok(Lexeme::LineEnd),
            _ => Err(LexError::UnclosedParenthesis { at: self.opened_at }),
        }
    }

    fn word(&mut self) -> Token<'a> {
        let start = self.at;
        let mut end = start;
        while let Some(&octet) = self.text.get(end) {
            if ENDS_WORD[usize::from(octet)] {
                break;
            }
            let escapes = octet == b'\\' && !matches!(self.text.get(end + 1), None | Some(b'\n'));
            end += 1 + usize::from(escapes);
        }
        self.token(start, start, end, end, false)
    }

    fn quoted(&mut self) -> Result<Lexeme<'a>, LexError> {
        let start = self.at;
        let mut end = start + 1;
        loop {
            match self.text.get(end) {
                None | Some(b'\n') => return Err(LexError::UnclosedQuote { at: start }),
                Some(b'"') => break,
                Some(b'\\') if self.text.get(end + 1).is_some_and(|next| *next != b'\n') => {
                    end += 2;
                }
                Some(_) => end += 1,
            }
        }
        Ok(Lexeme::Token(self.token(
            start,
            start + 1,
            end,
            end + 1,
            true,
        )))
    }

    fn token(&mut self, at: usize, from: usize, to: usize, next: usize, quoted: bool) -> Token<'a> {
        let token = Token {
            text: self.text.get(from..to).unwrap_or_default(),
            quoted,
            joined: self.joined,
            at,
        };
        self.at = next;
        self.joined = true;
        token
    }
}

/// The words of one record's data. A comment is refused: outside a master file, a `;` in an unquoted text is far more
/// often a forgotten quotation mark than a comment, and dropping the rest of it would lose data silently. A second line
/// outside parentheses is refused too: it would be a second record.
pub fn words(text: &[u8]) -> Result<Vec<Token<'_>>, LexError> {
    let mut lexer = Lexer::new(text);
    let mut words = Vec::new();
    let mut ended = None;
    loop {
        let before = lexer.position();
        match lexer.next_lexeme()? {
            Lexeme::Token(token) => {
                refuse_comment(text, before, token.at)?;
                if let Some(at) = ended {
                    return Err(LexError::SecondLine { at });
                }
                words.push(token);
            }
            Lexeme::LineEnd => {
                refuse_comment(text, before, lexer.position())?;
                if lexer.is_at_end() {
                    return Ok(words);
                }
                if !words.is_empty() {
                    ended = Some(before);
                }
            }
        }
    }
}

/// Between words there is nothing but blanks, parentheses, line ends and comments.
fn refuse_comment(text: &[u8], from: usize, to: usize) -> Result<(), LexError> {
    let gap = text.get(from..to).unwrap_or_default();
    match gap.iter().position(|octet| *octet == b';') {
        Some(offset) => Err(LexError::Comment { at: from + offset }),
        None => Ok(()),
    }
}

const ENDS_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let enders = b" \t\r\n();\"";
    let mut i = 0;
    while i < enders.len() {
        table[enders[i] as usize] = true;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        words(text.as_bytes())
            .expect("words")
            .iter()
            .map(|t| {
                let text = String::from_utf8_lossy(t.text);
                let quoted = if t.quoted { "q:" } else { "" };
                format!("{}{quoted}{text}", if t.joined { "+" } else { "" })
            })
            .collect()
    }

    #[test]
    fn words_end_at_blanks_quotes_and_parentheses() {
        assert_eq!(texts("10 mail.example."), ["10", "mail.example."]);
        assert_eq!(texts("\"a b\"\"c\" d"), ["q:a b", "+q:c", "d"]);
        assert_eq!(texts("alpn=\"h2\" port=1"), ["alpn=", "+q:h2", "port=1"]);
        assert_eq!(texts("a ( b\r\n\tc ) d\n"), ["a", "b", "c", "d"]);
        assert_eq!(texts(r#"a\ b "x\"y" \;z "#), [r"a\ b", r#"q:x\"y"#, r"\;z"]);
        assert_eq!(texts("\na (b\nc) \n\n"), ["a", "b", "c"]);
        assert_eq!(texts("\"\""), ["q:"]);
        assert_eq!(texts(""), [""; 0]);
        assert_eq!(texts(r"\"), [r"\"]);
    }

    #[test]
    fn what_cannot_be_split_says_where() {
        for (text, error) in [
            ("a \"b\nc\"", LexError::UnclosedQuote { at: 2 }),
            ("\"\\", LexError::UnclosedQuote { at: 0 }),
            ("a ( (b) c", LexError::UnclosedParenthesis { at: 2 }),
            ("a ) b", LexError::UnopenedParenthesis { at: 2 }),
            ("v=DKIM1; k=rsa", LexError::Comment { at: 7 }),
            ("a ;", LexError::Comment { at: 2 }),
            ("a\nb CNAME x", LexError::SecondLine { at: 1 }),
            ("a (b\nc)\n\n d", LexError::SecondLine { at: 8 }),
        ] {
            assert_eq!(words(text.as_bytes()), Err(error), "{text:?}");
        }
    }
}
