use super::*;

#[test]
fn the_explanation_is_a_valid_file() {
    let text = explain();
    let (state, warnings) = parse_with_warnings(&text, "explain").expect("valid");
    assert_eq!(warnings, []);
    assert_eq!(state.settings, State::default().settings);
}
