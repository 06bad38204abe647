//! How our documents stand in their files.

use serde_json::Value;

/// How a document stands in its file: pretty, with a newline at the end.
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
