//! What a route asks of a study before it may count as complete: a small language, parsed once and evaluated purely.
//!
//! ```text
//! modality = "CT" and count(series where description ~ "lung") >= 1 and instances >= 20
//! ```
//!
//! Texts are compared with `=`, `!=` and `~` (contains), all without regard to case; numbers with `=`, `!=`, `<`, `<=`,
//! `>` and `>=`. Of a study there are `instances`, `series`, `count(series where …)` and `count(instances where …)`;
//! `modality` and `description` of a study mean "of at least one of its series". Within `where (…)` one series is
//! looked at: `modality`, `description`, `number` and `instances`. `and` binds closer than `or`; `not` and parentheses
//! do what they do everywhere.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest text of a requirement, in characters.
const MAXIMUM_CHARACTERS: usize = 1000;
/// Parentheses and `not`s within each other.
const MAXIMUM_DEPTH: usize = 16;

/// What is known of one series of a study.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeriesFacts {
    /// (0008,0060)
    pub modality: Option<String>,
    /// (0008,103E)
    pub description: Option<String>,
    /// (0020,0011)
    pub number: Option<i64>,
    /// Objects that are here, counting a SOP Instance UID once.
    pub instances: u64,
}

/// A requirement that has been understood. Equal texts are equal requirements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Requirement {
    text: String,
    /// Joined by `and`.
    parts: Vec<Expression>,
}

/// A text that is no requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {position} ({found}) is not understood, expected {expected}")]
pub struct RequirementError {
    /// Number of the character, from 1.
    pub position: usize,
    /// What is there.
    pub found: String,
    /// What was expected there.
    pub expected: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    Or(Vec<Self>),
    And(Vec<Self>),
    Not(Box<Self>),
    Text { field: TextField, relation: Relation, value: String },
    Number { quantity: Quantity, relation: Relation, value: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextField {
    Modality,
    Description,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Quantity {
    Instances,
    Series,
    SeriesNumber,
    SeriesWhere(Box<Expression>),
    InstancesWhere(Box<Expression>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    Contains,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const RELATIONS: [(&str, Relation); 7] = [
    ("!=", Relation::NotEqual),
    ("<=", Relation::LessOrEqual),
    (">=", Relation::GreaterOrEqual),
    ("=", Relation::Equal),
    ("~", Relation::Contains),
    ("<", Relation::Less),
    (">", Relation::Greater),
];

impl Requirement {
    /// Reads a requirement.
    ///
    /// # Errors
    /// [`RequirementError`] with the place and what would be understood there.
    pub fn parse(text: &str) -> Result<Self, RequirementError> {
        let characters = text.chars().count();
        if characters > MAXIMUM_CHARACTERS {
            return Err(RequirementError {
                position: MAXIMUM_CHARACTERS + 1,
                found: "too long".to_owned(),
                expected: format!("at most {MAXIMUM_CHARACTERS} characters"),
            });
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, end: characters + 1 };
        let expression = parser.expression(Scope::Study, 0)?;
        if parser.at < parser.tokens.len() {
            return Err(parser.error("`and`, `or` or the end"));
        }
        let parts = match expression {
            Expression::And(parts) => parts,
            one => vec![one],
        };
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The text as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The parts, joined by `and`, that a study with these series does not meet; none when it meets all.
    #[must_use]
    pub fn unmet(&self, series: &[SeriesFacts]) -> Vec<String> {
        self.parts.iter().filter(|part| !part.holds(series)).map(ToString::to_string).collect()
    }
}

impl TryFrom<String> for Requirement {
    type Error = RequirementError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> Self {
        requirement.text
    }
}

impl std::str::FromStr for Requirement {
    type Err = RequirementError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// --- evaluation ----------------------------------------------------------------------------------------------------

impl Expression {
    /// Of a study: all its series. Of one series: a slice of that one.
    fn holds(&self, series: &[SeriesFacts]) -> bool {
        match self {
            Self::Or(parts) => parts.iter().any(|part| part.holds(series)),
            Self::And(parts) => parts.iter().all(|part| part.holds(series)),
            Self::Not(part) => !part.holds(series),
            Self::Text { field, relation, value } => {
                let found = |relation: Relation| series.iter().any(|one| field.holds(one, relation, value));
                // "is not" means that no series is.
                if *relation == Relation::NotEqual { !found(Relation::Equal) } else { found(*relation) }
            }
            Self::Number { quantity, relation, value } => {
                quantity.of(series).is_some_and(|number| relation.holds(number, *value))
            }
        }
    }
}

impl TextField {
    fn holds(self, series: &SeriesFacts, relation: Relation, value: &str) -> bool {
        let text = match self {
            Self::Modality => &series.modality,
            Self::Description => &series.description,
        };
        let text = text.as_deref().unwrap_or_default().trim().to_lowercase();
        let value = value.trim().to_lowercase();
        if relation == Relation::Contains { text.contains(&value) } else { text == value }
    }
}

impl Quantity {
    /// `None` for the number of a series that has none.
    fn of(&self, series: &[SeriesFacts]) -> Option<i64> {
        let matching = |condition: &Expression| -> Vec<&SeriesFacts> {
            series.iter().filter(|one| condition.holds(std::slice::from_ref(one))).collect()
        };
        let count = match self {
            Self::SeriesNumber => return series.first()?.number,
            Self::Instances => series.iter().map(|one| one.instances).sum(),
            Self::Series => series.len() as u64,
            Self::SeriesWhere(condition) => matching(condition).len() as u64,
            Self::InstancesWhere(condition) => matching(condition).iter().map(|one| one.instances).sum(),
        };
        Some(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl Relation {
    const fn holds(self, number: i64, value: i64) -> bool {
        match self {
            Self::Equal => number == value,
            Self::NotEqual => number != value,
            Self::Less => number < value,
            Self::LessOrEqual => number <= value,
            Self::Greater => number > value,
            Self::GreaterOrEqual => number >= value,
            Self::Contains => false,
        }
    }

    fn as_str(self) -> &'static str {
        RELATIONS.iter().find(|(_, relation)| *relation == self).map_or("?", |(text, _)| text)
    }
}

// --- as text -------------------------------------------------------------------------------------------------------

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
            write!(f, "({})", parts.join(word))
        };
        match self {
            Self::Or(parts) => joined(f, parts, " or "),
            Self::And(parts) => joined(f, parts, " and "),
            Self::Not(part) => write!(f, "not {part}"),
            Self::Text { field, relation, value } => {
                let field = match field {
                    TextField::Modality => "modality",
                    TextField::Description => "description",
                };
                write!(f, "{field} {} \"{value}\"", relation.as_str())
            }
            Self::Number { quantity, relation, value } => write!(f, "{quantity} {} {value}", relation.as_str()),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instances => f.write_str("instances"),
            Self::Series => f.write_str("series"),
            Self::SeriesNumber => f.write_str("number"),
            Self::SeriesWhere(condition) => write!(f, "count(series where {condition})"),
            Self::InstancesWhere(condition) => write!(f, "count(instances where {condition})"),
        }
    }
}

// --- reading -------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Number(i64),
    Relation(Relation),
    Open,
    Close,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{word}`"),
            Self::Text(text) => write!(f, "the text \"{text}\""),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Relation(relation) => write!(f, "`{}`", relation.as_str()),
            Self::Open => f.write_str("`(`"),
            Self::Close => f.write_str("`)`"),
        }
    }
}

/// The tokens with the number of their first character.
fn tokens(text: &str) -> Result<Vec<(usize, Token)>, RequirementError> {
    let characters: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let position = at + 1;
        let run =
            |accepts: fn(char) -> bool| -> String { characters.iter().skip(at).take_while(|c| accepts(**c)).collect() };
        let error = |found: String, expected: &str| RequirementError { position, found, expected: expected.to_owned() };
        let (token, length) = match character {
            _ if character.is_whitespace() => {
                at += 1;
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' => {
                let inside: String = characters.iter().skip(at + 1).take_while(|c| **c != '"').collect();
                let length = inside.chars().count() + 2;
                if at + length > characters.len() {
                    return Err(error("`\"`".to_owned(), "a second `\"` at the end of the text"));
                }
                (Token::Text(inside), length)
            }
            _ if character.is_ascii_digit() => {
                let digits = run(|c| c.is_ascii_digit());
                let Ok(number) = digits.parse() else {
                    return Err(error(format!("`{digits}`"), "a smaller number"));
                };
                (Token::Number(number), digits.len())
            }
            _ if character.is_ascii_alphabetic() => {
                let word = run(|c| c.is_ascii_alphanumeric() || c == '_');
                let length = word.len();
                (Token::Word(word.to_ascii_lowercase()), length)
            }
            _ => {
                let rest: String = characters.iter().skip(at).take(2).collect();
                match RELATIONS.iter().find(|(text, _)| rest.starts_with(text)) {
                    Some((text, relation)) => (Token::Relation(*relation), text.len()),
                    None => {
                        return Err(error(format!("`{character}`"), "a word, a number, a text in `\"` or a relation"));
                    }
                }
            }
        };
        tokens.push((position, token));
        at += length;
    }
    Ok(tokens)
}

/// What the words mean: a whole study or one of its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Study,
    Series,
}

impl Scope {
    const fn fields(self) -> &'static str {
        match self {
            Self::Study => "`modality`, `description`, `instances`, `series`, `count(…)`, `not` or `(`",
            Self::Series => "`modality`, `description`, `number`, `instances`, `not` or `(`",
        }
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    /// The position behind the last character.
    end: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(_, token)| token)
    }

    fn error(&self, expected: &str) -> RequirementError {
        let (position, found) = match self.tokens.get(self.at) {
            Some((position, token)) => (*position, token.to_string()),
            None => (self.end, "the end".to_owned()),
        };
        RequirementError { position, found, expected: expected.to_owned() }
    }

    /// Goes past `token` if it is next.
    fn take(&mut self, token: &Token) -> bool {
        let is_next = self.peek() == Some(token);
        self.at += usize::from(is_next);
        is_next
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.take(&Token::Word(word.to_owned()))
    }

    fn expect(&mut self, token: &Token) -> Result<(), RequirementError> {
        if self.take(token) { Ok(()) } else { Err(self.error(&token.to_string())) }
    }

    fn expression(&mut self, scope: Scope, depth: usize) -> Result<Expression, RequirementError> {
        let mut parts = vec![self.conjunction(scope, depth)?];
        while self.take_word("or") {
            parts.push(self.conjunction(scope, depth)?);
        }
        Ok(single_or(parts, Expression::Or))
    }

    fn conjunction(&mut self, scope: Scope, depth: usize) -> Result<Expression, RequirementError> {
        let mut parts = vec![self.unary(scope, depth)?];
        while self.take_word("and") {
            parts.push(self.unary(scope, depth)?);
        }
        Ok(single_or(parts, Expression::And))
    }

    fn unary(&mut self, scope: Scope, depth: usize) -> Result<Expression, RequirementError> {
        if depth >= MAXIMUM_DEPTH {
            return Err(self.error(&format!("at most {MAXIMUM_DEPTH} levels of parentheses and `not`")));
        }
        if self.take_word("not") {
            return Ok(Expression::Not(Box::new(self.unary(scope, depth + 1)?)));
        }
        if self.take(&Token::Open) {
            let inner = self.expression(scope, depth + 1)?;
            self.expect(&Token::Close)?;
            return Ok(inner);
        }
        let field = match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            _ => return Err(self.error(scope.fields())),
        };
        let quantity = match (field.as_str(), scope) {
            ("modality", _) => return self.text(TextField::Modality),
            ("description", _) => return self.text(TextField::Description),
            ("instances", _) => Quantity::Instances,
            ("series", Scope::Study) => Quantity::Series,
            ("number", Scope::Series) => Quantity::SeriesNumber,
            ("count", Scope::Study) => return self.count(depth),
            _ => return Err(self.error(scope.fields())),
        };
        self.at += 1;
        self.number(quantity)
    }

    fn count(&mut self, depth: usize) -> Result<Expression, RequirementError> {
        self.at += 1;
        self.expect(&Token::Open)?;
        let series = self.take_word("series");
        if !series && !self.take_word("instances") {
            return Err(self.error("`series` or `instances`"));
        }
        self.expect(&Token::Word("where".to_owned()))?;
        let condition = Box::new(self.expression(Scope::Series, depth + 1)?);
        self.expect(&Token::Close)?;
        self.number(if series { Quantity::SeriesWhere(condition) } else { Quantity::InstancesWhere(condition) })
    }

    fn text(&mut self, field: TextField) -> Result<Expression, RequirementError> {
        self.at += 1;
        let relation = match self.peek() {
            Some(Token::Relation(relation @ (Relation::Equal | Relation::NotEqual | Relation::Contains))) => *relation,
            _ => return Err(self.error("`=`, `!=` or `~`")),
        };
        self.at += 1;
        let value = match self.peek() {
            Some(Token::Text(text)) => text.clone(),
            _ => return Err(self.error("a text in `\"`")),
        };
        self.at += 1;
        Ok(Expression::Text { field, relation, value })
    }

    fn number(&mut self, quantity: Quantity) -> Result<Expression, RequirementError> {
        let relation = match self.peek() {
            Some(Token::Relation(relation)) if *relation != Relation::Contains => *relation,
            _ => return Err(self.error("`=`, `!=`, `<`, `<=`, `>` or `>=`")),
        };
        self.at += 1;
        let Some(Token::Number(value)) = self.peek().cloned() else { return Err(self.error("a whole number")) };
        self.at += 1;
        Ok(Expression::Number { quantity, relation, value })
    }
}

fn single_or(mut parts: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            join(parts)
        }
        None => join(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(modality: &str, description: &str, number: i64, instances: u64) -> SeriesFacts {
        SeriesFacts {
            modality: Some(modality.into()),
            description: Some(description.into()),
            number: Some(number),
            instances,
        }
    }

    fn study() -> Vec<SeriesFacts> {
        vec![series("CT", "Topogram", 1, 2), series("CT", "Lung 1.0 B70f", 2, 300), series("SR", "Dose report", 99, 1)]
    }

    #[rstest::rstest]
    #[case(r#"modality = "CT" and count(series where description ~ "lung") >= 1 and instances >= 20"#, true)]
    #[case(r#"modality = "ct""#, true)]
    #[case(r#"modality != "MR""#, true)]
    #[case(r#"modality != "SR""#, false)]
    #[case("instances = 303", true)]
    #[case("series = 3 and instances < 303", false)]
    #[case("series > 3 or instances <= 303", true)]
    #[case(r#"not modality = "MR""#, true)]
    #[case(r#"count(series where modality = "CT" and instances >= 100) = 1"#, true)]
    #[case(r#"count(instances where description ~ "lung" or description ~ "topo") = 302"#, true)]
    #[case(r"count(series where number = 99) != 0", true)]
    #[case(r#"(modality = "MR" or modality = "CT") and series >= 4"#, false)]
    #[case(r#"modality = "MR" or modality = "CT" and series >= 3"#, true)]
    #[case("COUNT(SERIES WHERE NUMBER > 1) = 2", true)]
    fn a_study_meets_a_requirement_or_not(#[case] text: &str, #[case] met: bool) {
        let requirement = Requirement::parse(text).unwrap();
        assert_eq!(requirement.unmet(&study()).is_empty(), met, "{text}");
    }

    #[test]
    fn the_parts_that_are_missing_are_named() {
        let text = r#"modality = "CT" and count(series where description ~ "bone" and not instances < 20) >= 1 and series >= 2"#;
        let unmet = Requirement::parse(text).unwrap().unmet(&study());
        assert_eq!(unmet, [r#"count(series where (description ~ "bone" and not instances < 20)) >= 1"#]);
    }

    #[test]
    fn what_is_shown_means_the_same() {
        let text = r#"(modality = "A" or not description ~ "b") and count(series where number != 3) > 0"#;
        let requirement = Requirement::parse(text).unwrap();
        for part in &requirement.parts {
            assert_eq!(Requirement::parse(&part.to_string()).unwrap().parts, std::slice::from_ref(part));
        }
    }

    #[test]
    fn a_series_without_a_number_or_a_description_meets_nothing_that_asks_for_one() {
        let bare = [SeriesFacts { instances: 1, ..SeriesFacts::default() }];
        for text in ["count(series where number >= 0) = 1", r#"description ~ "x""#, r#"modality = "CT""#] {
            assert_eq!(Requirement::parse(text).unwrap().unmet(&bare).len(), 1, "{text}");
        }
        assert_eq!(Requirement::parse("instances >= 1").unwrap().unmet(&[]).len(), 1);
    }

    #[rstest::rstest]
    #[case("", 1, "the end", "`modality`")]
    #[case("modality", 9, "the end", "`=`, `!=` or `~`")]
    #[case("modality = CT", 12, "`ct`", "a text in")]
    #[case("modality >= \"CT\"", 10, "`>=`", "`=`, `!=` or `~`")]
    #[case("instances ~ 3", 11, "`~`", "`>=`")]
    #[case("instances >= many", 14, "`many`", "a whole number")]
    #[case("instances >= 2 series", 16, "`series`", "`and`, `or` or the end")]
    #[case("number = 1", 1, "`number`", "`series`")]
    #[case("count(series where series = 1) = 1", 20, "`series`", "`number`")]
    #[case("count(images where number = 1) = 1", 7, "`images`", "`series` or `instances`")]
    #[case("count(series where number = 1 = 1", 31, "`=`", "`)`")]
    #[case("(series = 1", 12, "the end", "`)`")]
    #[case("description ~ \"lung", 15, "`\"`", "a second")]
    #[case("series = 1 & instances = 1", 12, "`&`", "a word")]
    #[case("instances = 99999999999999999999", 13, "`99999999999999999999`", "a smaller number")]
    fn an_error_points_at_its_place(
        #[case] text: &str,
        #[case] position: usize,
        #[case] found: &str,
        #[case] expected: &str,
    ) {
        let error = Requirement::parse(text).unwrap_err();
        assert_eq!((error.position, error.found.as_str()), (position, found), "{error}");
        assert!(error.expected.contains(expected), "{error}");
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{}series = 1{}", "(".repeat(MAXIMUM_DEPTH), ")".repeat(MAXIMUM_DEPTH));
        assert!(Requirement::parse(&deep).unwrap_err().expected.contains("levels"));
        assert!(Requirement::parse(&"not ".repeat(200)).is_err());
        assert!(Requirement::parse(&"series = 1 and ".repeat(100)).unwrap_err().expected.contains("at most 1000"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(
            text in r#"((modality|description|count|series|instances|number|where|and|or|not|[0-9]{1,3}|"[^"]{0,4}"|[=~<>!()"é]) ?){0,14}"#
        ) {
            if let Ok(requirement) = Requirement::parse(&text) {
                let _ = requirement.unmet(&study());
            }
        }
    }
}
