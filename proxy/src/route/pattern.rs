//! Regular expressions of routes: compiled once, bounded, and matched in time linear in what is looked at.

use regex::bytes::{Regex, RegexBuilder};

/// The longest regular expression in bytes.
pub const PATTERN_SIZE_MAX: usize = 1024;
/// The most memory that a compiled one may take, and the most that one may use to speed itself up, each in bytes.
const COMPILED_SIZE_MAX: usize = 64 * 1024;
/// How deeply groups may be nested.
const NESTING_MAX: u32 = 32;

/// Compiles a regular expression that must match the whole of what it is given. Unicode classes are off: hosts and paths
/// are ASCII, and the classes would make the automaton many times larger.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn compile(text: &str) -> Result<Regex, String> {
    if text.len() > PATTERN_SIZE_MAX {
        return Err(format!("longer than {PATTERN_SIZE_MAX} bytes"));
    }
    // By itself first, so that no bracket in it can close the group around it.
    build(text)?;
    build(&format!(r"\A(?:{text})\z"))
}

fn build(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(COMPILED_SIZE_MAX)
        .dfa_size_limit(COMPILED_SIZE_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                format!("takes more than {} KiB when compiled", COMPILED_SIZE_MAX / 1024)
            }
            // The last line is the sentence; those above draw an arrow.
            error => {
                let text = error.to_string();
                let sentence = text.lines().last().unwrap_or_default();
                format!("not a regular expression: {}", sentence.trim_start_matches("error: "))
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_must_match() {
        let regex = compile("a|b").expect("a pattern");
        assert!(regex.is_match(b"a") && regex.is_match(b"b"));
        assert!(!regex.is_match(b"ab") && !regex.is_match(b"xb") && !regex.is_match(b"a\n"));
    }

    #[test]
    fn what_is_refused() {
        let refused = |text: &str| compile(text).expect_err("it must be refused");
        assert!(
            refused("a)|(b").contains("not a regular expression: unopened group"),
            "{}",
            refused("a)|(b")
        );
        assert!(refused("(").contains("unclosed group"));
        assert!(refused(&"a".repeat(PATTERN_SIZE_MAX + 1)).contains("longer than 1024 bytes"));
        assert!(refused("(a{100}){100}").contains("more than 64 KiB"));
        assert!(refused(&"(".repeat(100)).contains("regular expression"));
    }
}
