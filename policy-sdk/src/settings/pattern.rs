//! A small regular-expression matcher for the `pattern` keyword. In: pattern and text; out: match or not. Used by the
//! settings check. Invariant: time is bounded by pattern length x text length squared (sets of positions instead of
//! backtracking), and a pattern it does not understand matches, since the host checks with a full engine.
//!
//! Understood: literals, `.`, classes with ranges and negation, `\d \w \s` and their opposites, escaped characters,
//! groups (also `(?:...)`), `|`, `* + ? {m} {m,} {m,n}`, `^` and `$`.

/// Largest count in `{m,n}`; larger ones are not understood.
const MAX_REPEAT: usize = 1_000;

#[derive(Debug)]
enum Term {
    /// One character: ranges, and whether they are excluded.
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    Start,
    End,
    /// Alternatives, each a sequence.
    Group(Vec<Vec<Term>>),
    Repeat {
        term: Box<Term>,
        least: usize,
        most: Option<usize>,
    },
}

/// Whether `pattern` matches somewhere in `text`.
pub(super) fn is_match(pattern: &str, text: &str) -> bool {
    let mut parser = Parser { rest: pattern.chars().collect(), at: 0 };
    let Some(alternatives) = parser.alternatives() else { return true };
    if parser.at != parser.rest.len() {
        return true;
    }
    let text: Vec<char> = text.chars().collect();
    let anywhere = vec![true; text.len() + 1];
    let group = Term::Group(alternatives);
    step(&group, &text, &anywhere).contains(&true)
}

/// From every position in `from`, where `term` may end.
fn step(term: &Term, text: &[char], from: &[bool]) -> Vec<bool> {
    let mut to = vec![false; from.len()];
    match term {
        Term::Class { ranges, negated } => {
            for (index, c) in text.iter().enumerate().filter(|(index, _)| from[*index]) {
                let inside = ranges.iter().any(|(low, high)| (low..=high).contains(&c));
                to[index + 1] = inside != *negated;
            }
        }
        Term::Start => to[0] = from[0],
        Term::End => to[text.len()] = from[text.len()],
        Term::Group(alternatives) => {
            for sequence in alternatives {
                let mut reached = from.to_vec();
                for term in sequence {
                    reached = step(term, text, &reached);
                }
                merge(&mut to, &reached);
            }
        }
        Term::Repeat { term, least, most } => {
            let mut reached = from.to_vec();
            for _ in 0..*least {
                reached = step(term, text, &reached);
            }
            merge(&mut to, &reached);
            // Each further round reaches a new position or ends the loop.
            let mut rounds = most.map(|most| most.saturating_sub(*least));
            while rounds != Some(0) {
                reached = step(term, text, &reached);
                if !merge(&mut to, &reached) {
                    break;
                }
                rounds = rounds.map(|rounds| rounds - 1);
            }
        }
    }
    to
}

/// Adds `more`; answers whether anything was new.
fn merge(positions: &mut [bool], more: &[bool]) -> bool {
    let mut new = false;
    for (position, more) in positions.iter_mut().zip(more) {
        new |= *more && !*position;
        *position |= *more;
    }
    new
}

struct Parser {
    rest: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    fn accept(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        self.at += usize::from(found);
        found
    }

    fn alternatives(&mut self) -> Option<Vec<Vec<Term>>> {
        let mut alternatives = vec![Vec::new()];
        loop {
            match self.peek() {
                None | Some(')') => return Some(alternatives),
                Some('|') => {
                    self.at += 1;
                    alternatives.push(Vec::new());
                }
                Some(_) => {
                    let term = self.repeated()?;
                    alternatives.last_mut()?.push(term);
                }
            }
        }
    }

    fn repeated(&mut self) -> Option<Term> {
        let term = self.single()?;
        let (least, most) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.at += 1;
                let least = self.count()?;
                let most = if self.accept(',') {
                    if self.peek() == Some('}') { None } else { Some(self.count()?) }
                } else {
                    Some(least)
                };
                if self.peek() != Some('}') {
                    return None;
                }
                (least, most)
            }
            _ => return Some(term),
        };
        self.at += 1;
        // Lazy and possessive forms, and repeats of repeats, are left to the host.
        if matches!(self.peek(), Some('?' | '*' | '+' | '{')) {
            return None;
        }
        Some(Term::Repeat { term: Box::new(term), least, most })
    }

    fn count(&mut self) -> Option<usize> {
        let mut count = None;
        while let Some(digit) = self.peek().and_then(|c| c.to_digit(10)) {
            self.at += 1;
            count = Some(count.unwrap_or(0) * 10 + digit as usize);
            if count > Some(MAX_REPEAT) {
                return None;
            }
        }
        count
    }

    fn single(&mut self) -> Option<Term> {
        match self.next()? {
            '^' => Some(Term::Start),
            '$' => Some(Term::End),
            '.' => Some(Term::Class { ranges: vec![('\n', '\n')], negated: true }),
            '[' => self.class(),
            '(' => {
                if self.accept('?') && !self.accept(':') {
                    return None;
                }
                let alternatives = self.alternatives()?;
                self.accept(')').then_some(Term::Group(alternatives))
            }
            '\\' => {
                let (ranges, negated) = self.escape()?;
                Some(Term::Class { ranges, negated })
            }
            '*' | '+' | '?' | '{' => None,
            c => Some(Term::Class { ranges: vec![(c, c)], negated: false }),
        }
    }

    /// After a backslash.
    fn escape(&mut self) -> Option<(Vec<(char, char)>, bool)> {
        let c = self.next()?;
        let ranges = match c.to_ascii_lowercase() {
            'd' => vec![('0', '9')],
            'w' => vec![('0', '9'), ('A', 'Z'), ('a', 'z'), ('_', '_')],
            's' => vec![(' ', ' '), ('\t', '\r')],
            _ if c == 'n' => vec![('\n', '\n')],
            _ if c == 't' => vec![('\t', '\t')],
            _ if c == 'r' => vec![('\r', '\r')],
            _ if c.is_ascii_alphanumeric() => return None,
            _ => vec![(c, c)],
        };
        Some((ranges, c.is_ascii_uppercase()))
    }

    /// After the opening bracket.
    fn class(&mut self) -> Option<Term> {
        let negated = self.accept('^');
        let mut ranges = Vec::new();
        loop {
            let low = match self.next()? {
                ']' if !ranges.is_empty() => return Some(Term::Class { ranges, negated }),
                '[' | ']' => return None,
                '\\' => {
                    let (escaped, opposite) = self.escape()?;
                    if opposite {
                        return None;
                    }
                    if let [(low, high)] = escaped[..]
                        && low == high
                    {
                        low
                    } else {
                        ranges.extend(escaped);
                        continue;
                    }
                }
                c => c,
            };
            let is_range = self.peek() == Some('-') && self.rest.get(self.at + 1).is_some_and(|c| *c != ']');
            if !is_range {
                ranges.push((low, low));
                continue;
            }
            self.at += 1;
            match self.next()? {
                '\\' => return None,
                high if high >= low => ranges.push((low, high)),
                _ => return None,
            }
        }
    }
}
